"""A fleet over real connections to fake servers, also processes that are killed in the middle of an answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from adapterhub.errors import AdapterIncompatibleError
from adapterhub.lora.request import StoredLoraRequest
from adapterhub.vllm.client import VLLMClient
from adapterhub.vllm.fleet import Fleet, FleetLimits
from adapterhub.vllm.unavailable import AdapterNotLoadedError, ReplicaUnavailableError
from tests.fake_vllm import FakeProcess, FakeVllm, serving

LIMITS = FleetLimits(sync_seconds=0.2)


def adapter(folder: Path, name: str = "sql", rank: int = 8) -> StoredLoraRequest:
    folder = folder / name
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank}))
    return StoredLoraRequest(f"{name}@1", f"sha256:{name.encode().hex():0<64}", folder)


@asynccontextmanager
async def connected(*urls: str) -> AsyncIterator[Fleet]:
    fleet = Fleet([VLLMClient(url) for url in urls], limits=LIMITS)
    try:
        yield fleet
    finally:
        await fleet.aclose()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.02)


async def ask(fleet: Fleet, adapter: StoredLoraRequest) -> tuple[str, str]:
    """The answer, and the name that the adapter has on the server."""
    text = ""
    async with fleet.lease(adapter) as lease:
        body = {"model": lease.model, "prompt": [104, 105], "stream": True, "max_tokens": 99}
        async with aclosing(lease.client.complete(body)) as frames:
            async for frame in frames:
                lease.check_model(frame["model"])
                text += "".join(choice["text"] for choice in frame["choices"])
        return text, lease.model


async def test_an_adapter_is_loaded_answers_and_is_unloaded(tmp_path: Path):
    fake = FakeVllm()
    with serving(fake) as urls:
        async with connected(*urls) as fleet:
            text, name = await ask(fleet, adapter(tmp_path))
            assert text == f"[{name}] hi"
            assert fake.loaded == {name: str(tmp_path / "sql")}
            assert fleet.replicas()[0].started_at == fake.started
            await fleet.unload(adapter(tmp_path))
            assert fake.loaded == {}


async def test_an_adapter_of_too_high_a_rank_is_refused_and_the_server_stays_ready(tmp_path: Path):
    with serving(FakeVllm(max_lora_rank=16)) as urls:
        async with connected(*urls) as fleet:
            with pytest.raises(AdapterIncompatibleError, match="rank 32"):
                await ask(fleet, adapter(tmp_path, rank=32))
            assert fleet.replicas()[0].ready


async def test_a_restart_that_nobody_noticed_is_healed_by_the_second_lease(tmp_path: Path):
    fake = FakeVllm()
    with serving(fake) as urls:
        async with connected(*urls) as fleet:
            await ask(fleet, adapter(tmp_path))
            fake.restart()
            with pytest.raises(AdapterNotLoadedError):
                await ask(fleet, adapter(tmp_path))
            text, name = await ask(fleet, adapter(tmp_path))
            assert text == f"[{name}] hi"
            await until(lambda: fleet.replicas()[0].started_at == fake.started)


async def test_a_server_that_says_it_is_full_gets_fewer_requests_and_comes_back(tmp_path: Path):
    fake = FakeVllm()
    with serving(fake) as urls:
        async with connected(*urls) as fleet:
            await ask(fleet, adapter(tmp_path))
            fake.unavailable = True
            for _ in range(2):
                with pytest.raises(ReplicaUnavailableError):
                    await ask(fleet, adapter(tmp_path))
            assert not fleet.replicas()[0].ready
            fake.unavailable = False
            await until(lambda: fleet.replicas()[0].ready)
            await ask(fleet, adapter(tmp_path))


async def test_killed_in_the_middle_of_an_answer_and_started_again(tmp_path: Path):
    with FakeProcess(token_seconds=0.1) as dying, serving(FakeVllm()) as (other,):
        async with connected(dying.url, other) as fleet:
            fleet.drain(other)
            await ask(fleet, adapter(tmp_path))
            broken = asyncio.create_task(ask(fleet, adapter(tmp_path)))
            await asyncio.sleep(0.5)
            fleet.drain(other, False)
            dying.kill()
            with pytest.raises(ReplicaUnavailableError):
                await broken
            text, name = await ask(fleet, adapter(tmp_path))  # by the other one
            assert text == f"[{name}] hi"
            dying.start()
            fleet.drain(other)
            await until(lambda: fleet.replicas()[0].ready)
            text, name = await ask(fleet, adapter(tmp_path))
            assert text == f"[{name}] hi"
            assert fleet.replicas()[0].adapters == (name,)
