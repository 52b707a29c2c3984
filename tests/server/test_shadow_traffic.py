"""Shadow traffic: which requests are copied, to whom, and what is counted; clients and logs see nothing of it."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.engine.interface import Completion, Request
from adapterhub.errors import CapacityError, GenerationError
from adapterhub.requests.generation import Generation
from adapterhub.server import ServerConfig, create_app
from adapterhub.server.shadow_traffic import LOWEST_PRIORITY, ShadowTraffic
from tests.waiting import until

BODIES: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": [{"role": "user", "content": "a secret question"}]},
    "completions": {"prompt": "a secret question"},
    "responses": {"input": "a secret question"},
}


class WatchedEngine(EchoEngine):
    """Notes requests; what `before` raises or awaits happens to those of a shadow."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []
        self.before: Callable[[], Any] | None = None

    async def agenerate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        self.requests += requests
        if self.before and requests[0].priority == LOWEST_PRIORITY:
            await self.before()
        return await super().agenerate(requests)


class Server:
    """A server with json@1 as `prod` and json@2 as its shadow, which gets a copy of every request."""

    def __init__(
        self, hub: AdapterHub, engine: WatchedEngine, client: httpx.AsyncClient, shadows: ShadowTraffic
    ):
        self.hub, self.engine, self.client, self.shadows = hub, engine, client, shadows

    async def ask(
        self, path: str = "chat/completions", model: str = "json@prod", **fields: Any
    ) -> httpx.Response:
        return await self.client.post(f"/v1/{path}", json={"model": model, **BODIES[path], **fields})

    async def settled(self) -> dict[str, int]:
        """The counts of json@2 once nothing runs in the background."""
        async with asyncio.timeout(60):
            while self.shadows._tasks:
                await asyncio.gather(*self.shadows._tasks)
        reports = (await self.client.get("/v1/adapterhub/shadows")).json()["data"]
        assert len(reports) <= 1
        names = ("sent", "same", "different", "failed", "dropped")
        return {name: reports[0][name] for name in names if reports[0][name]} if reports else {}


@pytest.fixture
async def server(tmp_path: Path, tiny_adapters: dict[str, Path]) -> AsyncIterator[Server]:
    registry = AdapterRegistry(tmp_path / "registry")
    for name in ("json", "code"):
        registry.register("json", tiny_adapters[name])
    registry.alias("json", "prod", 1)
    registry.shadow("json", "prod", 2, percent=100)
    with AdapterHub(engine := WatchedEngine(), registry) as hub:
        app = create_app(hub, ServerConfig(max_shadow_requests=1))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            yield Server(hub, engine, client, app.state.server.shadows)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_copy_goes_to_the_shadow_once_the_request_is_answered(
    server: Server, path: str, stream: bool
):
    answer = await server.ask(path, stream=stream)
    assert answer.headers["x-adapterhub-version"] == "1"
    assert "[json@2]" not in answer.text
    # EchoEngine's answers name the version, so they differ.
    assert await server.settled() == {"sent": 1, "different": 1}
    copy = server.engine.requests[-1]
    assert (copy.adapter.name if copy.adapter else None, copy.priority) == ("json@2", LOWEST_PRIORITY)
    assert server.engine.tokenizer.decode(copy.prompt).count("a secret question") == 1


async def test_the_copy_has_the_prompt_of_the_shadows_own_card(server: Server):
    server.hub.registry.update("json@2", prompt={"system": "Be brief."})
    await server.ask()
    await server.settled()
    main, copy = (server.engine.tokenizer.decode(one.prompt) for one in server.engine.requests)
    assert "Be brief." in copy
    assert "Be brief." not in main


async def test_times_are_those_of_the_engine(server: Server):
    answer = server.hub.generate("Hi", "json@prod")

    def took(seconds: float) -> Generation:
        return replace(answer, usage=replace(answer.usage, seconds=seconds))

    async def ask(_: str) -> list[Generation]:
        return [took(2), took(3)]

    server.shadows.copy("json@prod", [took(5), took(1)], ask)
    await server.settled()
    counts = server.shadows.counts["json@prod", "json@2"]
    assert (counts.seconds, counts.seconds_of_main) == (3, 5)


async def test_equal_texts_are_counted_as_such(server: Server):
    await server.ask("completions", echo=False, max_tokens=1)  # "[" of "[json@1] ..."
    assert await server.settled() == {"sent": 1, "same": 1}


async def test_all_prompts_and_all_answers_are_compared(server: Server):
    await server.ask("completions", prompt=["one", "two"], n=2, max_tokens=1)
    assert await server.settled() == {"sent": 1, "same": 1}
    assert len(server.engine.requests) == 4


@pytest.mark.parametrize("model", ["json", "json@1", "json@latest", "json@prod:0.5", "base", "auto"])
async def test_only_the_requests_of_the_alias_are_copied(server: Server, model: str):
    server.hub.registry.update("json@1", routing={"examples": ["a secret question"] * 3})
    await server.ask(model=model)
    assert await server.settled() == {}


async def test_a_share_of_the_requests_is_copied(server: Server):
    server.hub.registry.shadow("json", "prod", 2, percent=20)
    random.seed(5)
    for _ in range(200):
        await server.ask(max_tokens=1)
        await server.settled()
    sent = (await server.settled())["sent"]
    assert abs(sent - 40) <= 4 * (200 * 0.2 * 0.8) ** 0.5


async def test_a_request_that_fails_is_not_copied(server: Server):
    assert (await server.ask(temperature=-1)).status_code == 400
    assert await server.settled() == {}


async def test_a_copy_that_finds_another_running_is_dropped(server: Server):
    release = asyncio.Event()
    server.engine.before = release.wait
    await server.ask()
    await until(lambda: len(server.engine.requests) == 2)  # the copy has begun
    answer = await server.ask()  # clients do not wait for it
    assert answer.status_code == 200
    await until(lambda: [counts.dropped for counts in server.shadows.counts.values()] == [1])
    release.set()
    assert await server.settled() == {"sent": 1, "different": 1, "dropped": 1}


async def refuse() -> None:
    raise CapacityError("The queue is full.")


async def fail() -> None:
    raise GenerationError("It failed at a secret question.")


async def test_a_copy_that_the_engine_has_no_room_for_is_dropped(server: Server):
    server.engine.before = refuse
    await server.ask()
    assert await server.settled() == {"dropped": 1}


async def test_a_shadow_that_fails_concerns_nobody_else(server: Server, caplog: pytest.LogCaptureFixture):
    server.engine.before = fail
    assert (await server.ask()).status_code == 200
    assert await server.settled() == {"sent": 1, "failed": 1}
    assert "GenerationError" in caplog.text
    server.hub.registry.update("json@2", status="disabled")
    assert (await server.ask()).status_code == 200
    assert await server.settled() == {"sent": 2, "failed": 2}


async def test_no_text_is_logged_or_kept(server: Server, caplog: pytest.LogCaptureFixture):
    caplog.set_level("DEBUG")
    server.engine.before = fail
    await server.ask(user="ann")
    await server.settled()
    assert caplog.records
    assert "secret" not in caplog.text
    assert "secret" not in str(server.shadows.counts)
    assert not server.shadows._tasks


async def test_no_copies_while_the_server_shuts_down(server: Server):
    server.shadows._lifecycle.enter("shutting down")
    server.shadows.copy("json@prod", [server.hub.generate("Hi", "json@prod")], fail_if_asked)
    await asyncio.gather(*server.shadows._tasks)
    assert server.shadows.counts["json@prod", "json@2"].dropped == 1


async def fail_if_asked(version: str) -> Any:
    raise AssertionError(version)


async def test_zero_sends_none(server: Server):
    off = ShadowTraffic(server.hub, server.shadows._lifecycle, max_running=0)
    off.copy("json@prod", [server.hub.generate("Hi", "json@prod")], fail_if_asked)
    assert not off._tasks


async def test_metrics_count_by_adapter(server: Server):
    await server.ask(max_tokens=1)
    await server.settled()
    await server.ask()
    await server.settled()
    text = (await server.client.get("/metrics")).text
    assert 'adapterhub_shadow_requests_total{adapter="json",outcome="same"} 1.0' in text
    assert 'adapterhub_shadow_requests_total{adapter="json",outcome="different"} 1.0' in text
    assert 'adapterhub_shadow_requests_total{adapter="json",outcome="dropped"} 0.0' in text
    assert 'adapterhub_shadow_seconds_total{adapter="json"}' in text
    server.hub.registry.remove("json", force=True)
    assert "adapterhub_shadow_requests_total{" not in (await server.client.get("/metrics")).text
