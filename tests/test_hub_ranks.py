"""Adapters of any rank that the registry holds are served, beside others; limits that are set hold."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from adapterhub import AdapterHub, AdapterIncompatibleError, AdapterRegistry
from adapterhub.config import EngineLimits
from adapterhub.lora.digest_check import DigestCheck
from tests.tiny import make_adapter

PROMPT = "the quick brown fox"


@pytest.fixture(scope="module")
def registry(tmp_path_factory, tiny_base: Path) -> AdapterRegistry:
    registry = AdapterRegistry(tmp_path_factory.mktemp("ranks"))
    for name, rank in {"low": 4, "high": 96, "higher": 160}.items():
        adapter = make_adapter(tmp_path_factory.mktemp(name), tiny_base, seed=rank, r=rank, std=0.05)
        registry.register(name, adapter, base=tiny_base)
    return registry


def open_hub(base: Path, registry: AdapterRegistry, **settings: object) -> AdapterHub:
    return AdapterHub.from_pretrained(
        base, registry.root, quantization=None, device="cpu", kv_cache_mib=16, **settings
    )


def served(hub: AdapterHub, name: str) -> list[tuple[int, float]]:
    answer = hub.generate(PROMPT, name, raw=True, max_tokens=6, temperature=0, logprobs=0, ignore_eos=True)
    one = answer.completions[0]
    return [(token, logprob.logprob) for token, logprob in zip(one.token_ids, one.logprobs, strict=True)]


def pefts(hub: AdapterHub, base: Path, folder: Path) -> list[tuple[int, float]]:
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder
    ).eval()
    ids, found = hub.engine.tokenizer.encode(PROMPT), []
    with torch.inference_mode():
        for _ in range(6):
            logprobs = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            found.append((int(logprobs.argmax()), float(logprobs.max())))
            ids = [*ids, found[-1][0]]
    return found


def test_slots_grow_to_what_the_registry_holds(tiny_base: Path, registry: AdapterRegistry):
    with open_hub(tiny_base, registry) as hub:
        for name in ("low", "high", "low", "higher", "high", "low"):
            found, wanted = (
                served(hub, name),
                pefts(hub, tiny_base, registry.folder(registry.resolve(name))),
            )
            assert [token for token, _ in found] == [token for token, _ in wanted]
            assert [one for _, one in found] == pytest.approx([one for _, one in wanted], abs=1e-3)


def test_a_limit_that_is_set_holds(tiny_base: Path, registry: AdapterRegistry):
    with open_hub(tiny_base, registry, max_lora_rank=96) as hub:
        assert served(hub, "high")
        with pytest.raises(
            AdapterIncompatibleError, match="rank is 160, and the engine serves ranks up to 96"
        ):
            hub.generate(PROMPT, "higher", raw=True)
        assert served(hub, "low")


def test_requests_for_blends_do_not_grow_the_slots_without_a_limit(
    tiny_base: Path, registry: AdapterRegistry
):
    with (
        open_hub(tiny_base, registry) as hub,
        pytest.raises(AdapterIncompatibleError, match="rank is 100, and the engine serves ranks up to 64"),
    ):
        hub.generate(PROMPT, "high:0.5+low:0.5", raw=True)
    with open_hub(tiny_base, registry, max_lora_rank=100) as hub:
        assert hub.generate(PROMPT, "high:0.5+low:0.5", raw=True, max_tokens=1).text is not None


@pytest.mark.parametrize(("limit", "stored", "blend"), [(None, float("inf"), 64), (8, 8, 8), (256, 256, 256)])
def test_limits_of_ranks(limit: int | None, stored: float, blend: float):
    limits = EngineLimits(max_lora_rank=limit)
    assert (limits.max_rank_of(blend=False), limits.max_rank_of(blend=True)) == (stored, blend)


def test_a_high_rank_has_a_warning(registry: AdapterRegistry):
    assert registry.resolve("low").warnings == ()
    for name, rank in {"high": 96, "higher": 160}.items():
        (warning,) = registry.resolve(name).warnings
        assert f"its rank is {rank}" in warning
        assert "max_lora_rank" in warning


def test_a_rank_above_the_limit_is_refused_before_the_weights_are_read(
    tiny_base: Path, registry: AdapterRegistry, monkeypatch: pytest.MonkeyPatch
):
    read: list[object] = []
    monkeypatch.setattr(DigestCheck, "__call__", lambda _, adapter: read.append(adapter))
    with open_hub(tiny_base, registry, max_lora_rank=9) as hub:
        for name in ("high", "high", "low:0.5+high:0.1", "low:0.5+high:0.1"):
            with pytest.raises(AdapterIncompatibleError, match="serves ranks up to 9"):
                hub.generate(PROMPT, name, raw=True)
        assert read == []
        assert served(hub, "low")
    assert read
