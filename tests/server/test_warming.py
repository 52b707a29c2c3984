"""What is done before a server is ready: every kind of request has been answered once, and nobody has been told."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.engine import frozen_heap
from adapterhub.engine.echo import EchoStream
from adapterhub.engine.interface import Completion, Request
from adapterhub.errors import EngineClosedError
from adapterhub.server import ServerConfig, create_app
from adapterhub.server.warming import make_ready
from tests.server.admin import write_keys


class CountingEngine(EchoEngine):
    """Counts the requests that it gets."""

    asked = streamed = 0

    async def agenerate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Counts, and answers."""
        self.asked += len(requests)
        return await super().agenerate(requests)

    def astream(self, request: Request) -> EchoStream:
        """Counts, and answers."""
        self.streamed += 1
        return super().astream(request)


def test_each_path_that_generates_has_answered(tmp_path: Path):
    engine = CountingEngine()
    with AdapterHub(engine, AdapterRegistry(tmp_path)) as hub:
        app = make_ready(hub, create_app)
    assert engine.asked >= 3  # the echo engine refuses an output format and tools
    assert engine.streamed >= 3
    assert app.openapi_schema is not None


def test_keys_metrics_and_log_know_nothing_of_it(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config = ServerConfig(**write_keys(tmp_path))
    with caplog.at_level(logging.INFO), AdapterHub(EchoEngine(), AdapterRegistry(tmp_path / "r")) as hub:
        app = make_ready(hub, lambda hub: create_app(hub, config))
        with TestClient(app) as client:
            assert client.get("/v1/models").status_code == 401
            assert not [record for record in caplog.records if "/v1/chat" in record.getMessage()]
            counted, _ = app.state.server.metrics.exposition("")
    assert b'handler="/v1/chat/completions"' not in counted


def test_a_hub_that_cannot_answer_is_not_ready(tmp_path: Path):
    class Closed(EchoEngine):
        def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
            raise EngineClosedError("The engine is closed.")

    with AdapterHub(Closed(), AdapterRegistry(tmp_path)) as hub, pytest.raises(EngineClosedError):
        make_ready(hub, create_app)


def test_a_request_that_fails_is_logged_and_keeps_no_server_from_being_ready(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    class NoStreams(EchoEngine):
        def astream(self, request: Request) -> EchoStream:
            raise ValueError("a text of the request")

    with AdapterHub(NoStreams(), AdapterRegistry(tmp_path)) as hub:
        assert make_ready(hub, create_app).openapi_schema is not None
    told = [record.getMessage() for record in caplog.records if "warming up" in record.getMessage()]
    assert "A request to /v1/completions failed while warming up: ValueError" in told
    assert "a text of the request" not in caplog.text


@pytest.mark.parametrize("frozen", [0, 5])
def test_more_is_frozen_only_where_the_heap_is(monkeypatch: pytest.MonkeyPatch, frozen: int):
    calls: list[str] = []
    monkeypatch.setattr(frozen_heap.gc, "get_freeze_count", lambda: frozen)
    monkeypatch.setattr(frozen_heap.gc, "collect", lambda: calls.append("collect"))
    monkeypatch.setattr(frozen_heap.gc, "freeze", lambda: calls.append("freeze"))
    frozen_heap.freeze_more()
    assert calls == (["collect", "freeze"] if frozen else [])
