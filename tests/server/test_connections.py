"""What holds for every request of the application: probes, ids, bounds, CORS, the drain, unexpected failures."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import ClassVar

import httpx
import pytest

from adapterhub import AdapterHub, EchoEngine
from adapterhub.errors import ConfigError
from adapterhub.server import ServerConfig, create_app
from adapterhub.server.exposure import check_exposure
from adapterhub.server.lifecycle import Lifecycle

ASKED = {"model": "json", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}
PATH = "/v1/chat/completions"
Calling = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture
def calling(hub: AdapterHub) -> Calling:
    """A client of an application with settings of its own."""

    @asynccontextmanager
    async def calling(
        lifecycle: Lifecycle | None = None, **settings: object
    ) -> AsyncIterator[httpx.AsyncClient]:
        app = create_app(hub, ServerConfig(**settings), lifecycle=lifecycle)  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            yield client

    return calling


class TestProbes:
    @pytest.mark.parametrize(("method", "path"), [("GET", "/health"), ("GET", "/ping"), ("POST", "/ping")])
    async def test_ready(self, client: httpx.AsyncClient, method: str, path: str):
        answer = await client.request(method, path)
        assert (answer.status_code, answer.content) == (200, b"")

    async def test_the_stage(self, client: httpx.AsyncClient):
        assert (await client.get("/ready")).json() == {"status": "ready", "running": 0}

    async def test_a_server_that_shuts_down(self, calling: Calling):
        lifecycle = Lifecycle()
        async with calling(lifecycle) as client:
            with lifecycle.answering():
                lifecycle.enter("shutting down")
                answers = [await client.get(path) for path in ("/health", "/ping", "/ready")]
        assert [answer.status_code for answer in answers] == [503, 503, 503]
        assert answers[-1].json() == {"status": "shutting down", "running": 1}

    async def test_new_requests_are_refused_while_it_shuts_down(self, calling: Calling):
        lifecycle = Lifecycle()
        lifecycle.enter("shutting down")
        async with calling(lifecycle) as client:
            answer = await client.post(PATH, json=ASKED)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert answer.headers["connection"] == "close"
        assert answer.json()["error"]["code"] == "overloaded"
        assert answer.headers["x-request-id"]


class TestRequestIds:
    async def test_are_part_of_the_answers_id(self, client: httpx.AsyncClient):
        answer = await client.post(PATH, json=ASKED, headers={"x-request-id": "mine-7"})
        assert answer.json()["id"] == "chatcmpl-mine-7"
        assert answer.headers["x-request-id"] == "mine-7"

    @pytest.mark.parametrize("path", ["/nothing", "/v1/models/nothing", "/health"])
    async def test_are_in_every_answer(self, client: httpx.AsyncClient, path: str):
        answer = await client.get(path, headers={"x-request-id": "mine-7"})
        assert answer.headers["x-request-id"] == "mine-7"


class TestBodies:
    async def test_too_large(self, calling: Calling):
        async with calling(max_body_bytes=100) as client:
            answer = await client.post(PATH, json={**ASKED, "user": "x" * 100})
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"
        assert answer.headers["connection"] == "close"

    async def test_too_large_without_a_length(self, calling: Calling):
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(101):
                yield b" "

        async with calling(max_body_bytes=100) as client:
            answer = await client.post(PATH, content=parts(), headers={"content-type": "application/json"})
        assert answer.status_code == 413


class TestStreams:
    async def test_say_that_they_are_not_to_be_kept_or_buffered(self, client: httpx.AsyncClient):
        answer = await client.post(PATH, json={**ASKED, "stream": True})
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-accel-buffering"] == "no"

    async def test_send_comments_while_nothing_comes(self, hub: AdapterHub):
        slow = AdapterHub(EchoEngine(token_seconds=0.1), hub.registry)
        app = create_app(slow, ServerConfig(first_output_seconds=0, ping_seconds=0.01))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            frames = (await client.post(PATH, json={**ASKED, "stream": True})).text.split("\n\n")
        assert frames[0] == ": ping"
        assert frames.count(": ping") > 9  # there are nine tokens
        assert len([frame for frame in frames if '"content":' in frame]) == 10
        assert frames[-2:] == ["data: [DONE]", ""]


class TestCors:
    ASKING: ClassVar = {"origin": "https://chat.example.org", "access-control-request-method": "POST"}

    async def test_is_off(self, client: httpx.AsyncClient):
        asked = await client.options(PATH, headers=self.ASKING)
        answer = await client.post(PATH, json=ASKED, headers=self.ASKING)
        assert asked.status_code == 405
        assert not [name for name in (*asked.headers, *answer.headers) if name.startswith("access-control")]

    async def test_allows_listed_origins_only(self, calling: Calling):
        async with calling(cors_origins=("https://chat.example.org",)) as client:
            asked = await client.options(PATH, headers=self.ASKING)
            refused = await client.options(
                PATH, headers={**self.ASKING, "origin": "https://evil.example.org"}
            )
        assert asked.headers["access-control-allow-origin"] == "https://chat.example.org"
        assert "access-control-allow-credentials" not in asked.headers
        assert "access-control-allow-origin" not in refused.headers

    async def test_lets_pages_read_who_answered(self, calling: Calling):
        async with calling(cors_origins=("*",)) as client:
            answer = await client.post(
                PATH, json={**ASKED, "model": "auto", "user": "ann"}, headers=self.ASKING
            )
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        ours = [name for name in answer.headers if name.startswith("x-")]
        assert "x-adapterhub-route" in ours
        assert set(ours) <= set(exposed)


class TestFailures:
    async def test_an_unexpected_one_tells_nothing(
        self, hub: AdapterHub, calling: Calling, monkeypatch, caplog
    ):
        async def fail(*_: object, **__: object) -> None:
            raise LookupError("a secret of the machine")

        monkeypatch.setattr(hub, "agenerate", fail)
        async with calling() as client:
            answer = await client.post(PATH, json=ASKED, headers={"x-request-id": "mine-7"})
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal_error"
        assert "secret" not in answer.text
        assert answer.headers["x-request-id"] == "mine-7"
        assert "a secret of the machine" in caplog.text
        assert "mine-7" in caplog.text


class TestExposure:
    @pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
    def test_the_loopback_interface_needs_no_keys(self, host: str):
        check_exposure(host, has_keys=False, insecure=False)

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", "localhost.example.org"])
    def test_other_addresses_need_keys_or_force(self, host: str):
        with pytest.raises(ConfigError, match="no API keys"):
            check_exposure(host, has_keys=False, insecure=False)
        check_exposure(host, has_keys=True, insecure=False)
        check_exposure(host, has_keys=False, insecure=True)
