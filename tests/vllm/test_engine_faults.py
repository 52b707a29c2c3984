"""The engine over three servers that die and come back at random, with 200 adapters."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from adapterhub.errors import AdapterHubError, InvalidRequestError
from adapterhub.lora.request import StoredLoraRequest
from adapterhub.registry import AdapterRegistry
from adapterhub.vllm import FleetLimits, VLLMEngine
from adapterhub.vllm.adapter_names import AdapterName
from adapterhub.vllm.unavailable import ReplicaUnavailableError
from tests.fake_vllm import FakeServer, FakeVllm
from tests.fake_vllm.completions import Completion
from tests.registry.maker import make_adapter
from tests.vllm.conftest import Connect, request
from tests.waiting import until

ADAPTERS, CONCURRENT = 200, 32


@pytest.mark.parametrize("requests", [300, pytest.param(2000, marks=pytest.mark.slow)])
async def test_every_request_ends_once_right_or_with_an_error_that_may_be_retried(
    connect: Connect, adapter: Callable[..., StoredLoraRequest], requests: int
):
    chance = random.Random(0)
    adapters = [adapter(f"a{i}@1", hashlib.sha256(b"%d" % i).hexdigest()) for i in range(ADAPTERS)]
    asked = chance.choices(adapters, [1 / (rank + 1) for rank in range(ADAPTERS)], k=requests)  # Zipf
    with ExitStack() as stack:
        servers = [stack.enter_context(FakeServer(FakeVllm(token_seconds=0.003))) for _ in range(3)]
        engine = connect(*servers, limits=FleetLimits(sync_seconds=0.5))
        traffic = Traffic(engine)
        faults = asyncio.create_task(_die_and_come_back(servers, traffic, chance))
        await asyncio.gather(*(traffic.ask(number, one) for number, one in enumerate(asked)))
        faults.cancel()
        await asyncio.wait([faults])
        assert len(traffic.errors) + traffic.answers == requests
        assert all(error.retryable for error in traffic.errors), traffic.errors
        assert len(traffic.errors) < requests / 4
        assert (engine.stats().running, engine.stats().waiting) == (0, 0)
        # An answer comes before its connection is closed.
        await until(lambda: not any(state.in_flight for state in engine.replicas()))
        assert sum(state.failures for state in engine.replicas()) >= requests // 100


class Traffic:
    """Requests, some of them at a time, and what became of them."""

    def __init__(self, engine: VLLMEngine) -> None:
        self.answers = 0
        self.errors: list[AdapterHubError] = []
        self._engine = engine
        self._room = asyncio.Semaphore(CONCURRENT)

    async def ask(self, number: int, adapter: StoredLoraRequest) -> None:
        async with self._room:
            try:
                ((completion,),) = await self._engine.agenerate([request(str(number), adapter)])
            except AdapterHubError as error:
                self.errors.append(error)
                await asyncio.sleep(0.05)
                return
        assert completion.text == f"[{AdapterName.of(adapter.name, adapter.digest)}] {number}"
        self.answers += 1

    async def ended(self, count: int) -> None:
        while len(self.errors) + self.answers < count:
            await asyncio.sleep(0.005)


async def _die_and_come_back(servers: list[FakeServer], traffic: Traffic, chance: random.Random) -> None:
    """Ends a server after each hundred requests, and starts it again thirty requests later."""
    for count in itertools.count(50, 100):
        server = chance.choice(servers)
        await traffic.ended(count)
        await asyncio.to_thread(server.kill)
        await traffic.ended(count + 30)
        await asyncio.to_thread(server.start)


def test_a_draining_server_gets_no_requests(connect: Connect, adapter: Callable[..., StoredLoraRequest]):
    with FakeServer(FakeVllm()) as first, FakeServer(FakeVllm()) as second:
        engine = connect(first, second)
        engine.drain(first.url)
        for i in range(10):
            engine.generate([request("hi", adapter(f"a{i}@1"))])
        assert (first.fake.loads.total(), second.fake.loads.total()) == (0, 10)
        assert [state.draining for state in engine.replicas()] == [True, False]
        with pytest.raises(InvalidRequestError, match="no such server"):
            engine.drain("http://elsewhere")
        engine.close()


def test_a_server_that_answers_with_another_model_is_left(
    connect: Connect, adapter: Callable[..., StoredLoraRequest], monkeypatch: pytest.MonkeyPatch
):
    with FakeServer(FakeVllm()) as server:
        engine = connect(server)
        monkeypatch.setattr(Completion, "_frame", _frame_of_another_model)
        with pytest.raises(ReplicaUnavailableError, match="another model"):
            engine.generate([request("hi", adapter())])
        engine.close()


def _frame_of_another_model(self: Completion, choices: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": "x", "object": "text_completion", "model": "other", "choices": choices}


def test_the_hubs_registry_decides_what_stays_loaded(connect: Connect, tmp_path: Path):
    registry = AdapterRegistry(tmp_path / "registry")
    card = registry.register("sql", make_adapter(tmp_path / "sql"))
    stored = StoredLoraRequest(card.ref, card.digest, registry.folder(card))
    with FakeServer(FakeVllm()) as server:
        engine = connect(server, registry=registry, limits=FleetLimits(sync_seconds=0.1))
        engine.generate([request("hi", stored)])
        assert len(server.fake.loaded) == 1
        registry.remove("sql")
        deadline = time.monotonic() + 30
        while server.fake.loaded and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.fake.loaded == {}
        engine.close()
