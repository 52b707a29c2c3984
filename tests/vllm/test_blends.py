"""Blends on servers: written as adapters beside the registry's, exact or cut to the servers' rank, and removed."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from adapterhub.errors import AdapterIncompatibleError, InvalidRequestError
from adapterhub.export import materialising
from adapterhub.lora.request import BlendedLoraRequest, LoraRequest, StoredLoraRequest
from adapterhub.registry import AdapterRegistry
from adapterhub.vllm import FleetLimits, VLLMEngine, blends
from tests.fake_vllm import FakeServer, FakeVllm
from tests.tiny import make_adapter
from tests.vllm.conftest import Connect, request
from tests.waiting import until, wait_for


@pytest.fixture
def registry(tmp_path: Path, tiny_base: Path) -> AdapterRegistry:
    registry = AdapterRegistry(tmp_path / "registry")
    for name, settings in {
        "json": {"seed": 1, "use_rslora": True},
        "code": {"seed": 2, "r": 6},
        "dora": {"seed": 3, "use_dora": True},
    }.items():
        registry.register(name, make_adapter(tmp_path / name, tiny_base, **settings), base=tiny_base)
    return registry


def blend(registry: AdapterRegistry, **weights: float) -> BlendedLoraRequest:
    parts = [(StoredLoraRequest.of(registry, registry.get(name)), weight) for name, weight in weights.items()]
    return BlendedLoraRequest.of("+".join(f"{name}@1:{weight}" for name, weight in weights.items()), parts)


def answer(engine: VLLMEngine, adapter: LoraRequest) -> str:
    ((completion,),) = engine.generate([request("hi", adapter)])
    return completion.text


def config(folder: str | Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / "adapter_config.json").read_text())
    return found


def written(registry: AdapterRegistry) -> list[Path]:
    return list((registry.root / blends.FOLDER).glob("*/adapter/adapter_model.safetensors"))


def test_a_blend_is_loaded_as_the_exact_sum(
    server: FakeServer, fake: FakeVllm, connect: Connect, registry: AdapterRegistry
):
    engine, asked = connect(server, registry=registry), blend(registry, json=0.7, code=0.3)
    name = f"blend-{asked.digest.removeprefix('sha256:')[:16]}--v1-"
    assert answer(engine, asked).startswith(f"[{name}")
    ((model, folder),) = fake.loaded.items()
    assert model.startswith(name)
    assert Path(folder).is_relative_to(registry.root.absolute())
    assert config(folder)["r"] == 4 + 6
    assert not config(folder).get("use_rslora")
    assert answer(engine, asked) == f"[{model}] hi"
    assert fake.loads.total() == 1
    assert answer(engine, blend(registry, json=0.6, code=0.3)) != f"[{model}] hi"
    engine.unload(asked)
    assert model not in fake.loaded


def test_another_front_finds_what_was_written(
    server: FakeServer, fake: FakeVllm, connect: Connect, registry: AdapterRegistry
):
    answers = {answer(connect(server, registry=registry), blend(registry, json=1, code=-1)) for _ in range(2)}
    assert len(answers) == len(fake.loaded) == fake.loads.total() == 1


def test_a_blend_above_the_servers_rank_is_cut_and_the_log_says_so(
    server: FakeServer,
    fake: FakeVllm,
    connect: Connect,
    registry: AdapterRegistry,
    caplog: pytest.LogCaptureFixture,
):
    fake.max_lora_rank, asked = 8, blend(registry, json=0.7, code=0.3)
    with pytest.raises(AdapterIncompatibleError, match="rank 10 is greater than max_lora_rank 8") as caught:
        answer(connect(server, registry=registry), asked)
    assert "max_lora_rank" in (caught.value.hint or "")
    assert "cut" not in caplog.text
    answer(connect(server, registry=registry, limits=FleetLimits(max_lora_rank=8)), asked)
    ((_, folder),) = fake.loaded.items()
    assert config(folder)["r"] == 8
    assert f"{asked.name} was cut to rank 8: what it changes differs by" in caplog.text


def test_an_adapter_above_the_rank_that_the_servers_were_started_for_is_not_sent(
    server: FakeServer, fake: FakeVllm, connect: Connect, registry: AdapterRegistry
):
    engine = connect(server, registry=registry, limits=FleetLimits(max_lora_rank=4))
    with pytest.raises(AdapterIncompatibleError, match="its rank is 6, above 4"):
        answer(engine, StoredLoraRequest.of(registry, registry.get("code")))
    assert not fake.bodies


def test_what_cannot_be_written_as_lora_is_refused_before_anything_is_sent(
    server: FakeServer, fake: FakeVllm, connect: Connect, registry: AdapterRegistry
):
    engine, asked = connect(server, registry=registry), blend(registry, json=0.7, dora=0.3)
    good = StoredLoraRequest.of(registry, registry.get("json"))
    with pytest.raises(AdapterIncompatibleError, match="it uses DoRA") as caught:
        engine.generate([request("hi", good), request("hi", asked)])
    assert "--dora svd" in (caught.value.hint or "")
    assert not fake.bodies
    assert not written(registry)
    assert engine.stats().rejected == {AdapterIncompatibleError.code: 1}


def test_an_engine_without_a_registry_and_pinning_are_refused(
    server: FakeServer, fake: FakeVllm, connect: Connect, registry: AdapterRegistry
):
    asked = blend(registry, json=0.7, code=0.3)
    with pytest.raises(InvalidRequestError, match="without a registry"):
        answer(connect(server), asked)
    with pytest.raises(InvalidRequestError, match="cannot keep it loaded") as caught:
        connect(server, registry=registry).pin(asked)
    assert "hub.blend" in (caught.value.hint or "")
    assert not fake.bodies


def test_those_used_longest_ago_are_removed_above_the_maximum(
    server: FakeServer, connect: Connect, registry: AdapterRegistry, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(blends, "MAX_BLENDS", 2)
    engine = connect(server, registry=registry)
    asked = [blend(registry, json=weight, code=0.5) for weight in (0.1, 0.2, 0.3)]
    first = [answer(engine, one) for one in asked[:2]]
    answer(engine, asked[0])
    answer(engine, asked[2])
    assert len(written(registry)) == 2
    assert [answer(engine, one) for one in asked[:2]] == first  # the second one is written again
    assert len(written(registry)) == 2


def test_a_blend_stays_loaded_until_nobody_has_used_it_for_a_while(
    server: FakeServer,
    fake: FakeVllm,
    connect: Connect,
    registry: AdapterRegistry,
    monkeypatch: pytest.MonkeyPatch,
):
    engine = connect(server, registry=registry, limits=FleetLimits(sync_seconds=0.02))
    first = answer(engine, blend(registry, json=0.7, code=0.3))
    probes = fake.probes
    wait_for(lambda: fake.probes > probes + 2)  # the loop that compares has run since
    assert answer(engine, blend(registry, json=0.7, code=0.3)) == first
    assert fake.loads.total() == 1
    monkeypatch.setattr(blends, "IDLE_SECONDS", 0.0)
    wait_for(lambda: not fake.loaded)
    wait_for(lambda: not written(registry))
    monkeypatch.undo()
    assert answer(engine, blend(registry, json=0.7, code=0.3)) == first


def test_a_blend_in_use_is_not_removed(
    server: FakeServer,
    fake: FakeVllm,
    connect: Connect,
    registry: AdapterRegistry,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(blends, "MAX_BLENDS", 1)
    fake.token_seconds = 0.1  # 100 seconds in all
    engine = connect(server, registry=registry, limits=FleetLimits(sync_seconds=0.02))
    stream = engine.stream(request("hi" * 500, blend(registry, json=0.7, code=0.3), max_tokens=2000))
    next(stream)
    ((model, folder),) = fake.loaded.items()
    engine.generate([request("hi", blend(registry, json=0.1, code=0.2), max_tokens=1)])
    monkeypatch.setattr(blends, "IDLE_SECONDS", 0.0)
    probes = fake.probes
    wait_for(lambda: fake.probes > probes + 2)
    assert Path(folder).is_dir()
    assert model in fake.loaded
    fake.token_seconds = 0
    assert "".join(output.text for output in stream).endswith("hi")
    wait_for(lambda: not written(registry))


def test_a_blend_that_an_answer_uses_for_long_is_not_idle_to_other_fronts(
    server: FakeServer, fake: FakeVllm, connect: Connect, registry: AdapterRegistry
):
    fake.token_seconds = 0.1  # 100 seconds in all
    engine = connect(server, registry=registry, limits=FleetLimits(sync_seconds=0.02))
    stream = engine.stream(request("hi" * 500, blend(registry, json=0.7, code=0.3), max_tokens=2000))
    next(stream)
    ((_, folder),) = fake.loaded.items()
    marked = Path(folder).parent
    os.utime(marked, (1, 1))
    wait_for(lambda: marked.stat().st_mtime > 1)
    stream.close()


async def test_of_requests_that_are_given_up_one_at_a_time_is_written(
    registry: AdapterRegistry, monkeypatch: pytest.MonkeyPatch
):
    """Else they would take all threads, and other requests would wait for these."""
    write, released = materialising.materialise, threading.Event()
    begun, ended, at_once = list[LoraRequest](), list[LoraRequest](), list[int]()

    def slowly(registry: AdapterRegistry, adapter: LoraRequest, *form: Any, **settings: Any) -> Any:
        begun.append(adapter)
        at_once.append(len(begun) - len(ended))
        released.wait(60)
        try:
            return write(registry, adapter, *form, **settings)
        finally:
            ended.append(adapter)

    monkeypatch.setattr(materialising, "materialise", slowly)
    served = blends.MaterialisedBlends(registry, None)
    asked = [blend(registry, json=weight, code=0.5) for weight in (0.1, 0.2)]

    async def use(adapter: LoraRequest) -> None:
        async with served.stored(adapter):
            pass

    given_up = asyncio.create_task(use(asked[0]))
    await until(lambda: begun)
    given_up.cancel()
    await asyncio.wait([given_up])
    others = asyncio.gather(use(asked[1]), use(asked[0]))
    await asyncio.sleep(0.05)
    released.set()
    await others
    assert given_up.cancelled()
    assert at_once == [1, 1]
    assert begun == asked
