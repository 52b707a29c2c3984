"""Steps on llama.cpp: what was computed is dropped where a slot became shorter, and groups keep their order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from adapterhub.engine import ScheduledSequence, adapter_loader
from adapterhub.errors import GenerationError
from adapterhub.lora.request import StoredLoraRequest
from tests.engine.maker import prompt_of
from tests.llama_cpp.conftest import LIMITS

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make test-gguf)")

from adapterhub.llama_cpp import load_gguf_base
from adapterhub.llama_cpp.bindings import library
from adapterhub.llama_cpp.kv import MAX_PROMPTS, LlamaKVCache, LlamaPromptCache
from adapterhub.llama_cpp.runner import LlamaCppRunner

Parts = tuple[LlamaCppRunner, LlamaKVCache, LlamaPromptCache]


@pytest.fixture
def parts(gguf_file: Path, adapters: dict[str, StoredLoraRequest]) -> Iterator[Parts]:
    """A runner with two adapters in its slots, and its caches."""
    base = load_gguf_base(gguf_file)
    runner = LlamaCppRunner(base, LIMITS)
    caches = runner.make_caches(LIMITS.kv_cache_bytes)
    load = adapter_loader(base)
    for slot, name in enumerate(["all-4", "lora-6"]):
        runner.load_adapter(slot, load(adapters[name]))
    yield runner, *caches
    runner.close()


def scheduled(cache: LlamaKVCache, prompt: list[int], lora_slot: int | None = None) -> ScheduledSequence:
    return ScheduledSequence(cache.allocate(64), prompt, lora_slot, needs_logits=True)


def kept(logits: torch.Tensor) -> torch.Tensor:
    """llama.cpp overwrites them in the next step."""
    return logits.clone()


def test_a_step_with_several_adapters_keeps_the_order_of_its_sequences(parts: Parts):
    runner, cache, _ = parts
    slots, prompts = [1, None, 0, 1], [prompt_of(seed, 9) for seed in range(4)]
    alone = [
        kept(runner.step([scheduled(cache, prompt, slot)]))[0]
        for slot, prompt in zip(slots, prompts, strict=True)
    ]
    cache.clear()
    batch = [scheduled(cache, prompt, slot) for slot, prompt in zip(slots, prompts, strict=True)]
    together = kept(runner.step(batch))
    assert torch.allclose(together, torch.stack(alone), atol=1e-3)
    assert (torch.stack(alone)[0] - alone[3]).abs().max() > 0.1


def test_the_bytes_of_an_adapter_are_those_of_its_weights(
    gguf_file: Path, adapters: dict[str, StoredLoraRequest]
):
    base = load_gguf_base(gguf_file)
    runner, deltas = LlamaCppRunner(base, LIMITS), adapter_loader(base)(adapters["all-64"])
    runner.load_adapter(0, deltas)
    weights = 4 * sum(delta.a.numel() + delta.b.numel() for delta in deltas.values())
    assert weights < runner.adapter_bytes < 1.05 * weights
    runner.close()


def test_a_step_that_was_undone_is_computed_again(parts: Parts):
    """As after an interrupt: the scheduler makes the slot shorter."""
    runner, cache, _ = parts
    one = scheduled(cache, prompt_of(1, 20), 0)
    first = kept(runner.step([one]))
    one.kv_slot.length -= 20
    assert torch.allclose(kept(runner.step([one])), first, atol=1e-5)
    assert one.kv_slot.length == 20


def test_after_a_failed_batch_every_sequence_is_as_long_as_before(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
):
    runner, cache, _ = parts
    batch = [scheduled(cache, prompt_of(seed, 12), slot) for seed, slot in enumerate([None, 0])]
    decode, calls = library().llama_decode, []

    def second_fails(context: Any, native: Any) -> int:
        calls.append(native.n_tokens)
        return 1 if len(calls) == 2 else decode(context, native)

    with monkeypatch.context() as patch:
        patch.setattr(library(), "llama_decode", second_fails)
        with pytest.raises(GenerationError, match="code 1"):
            runner.step(batch)
    assert [one.kv_slot.length for one in batch] == [0, 0]
    again = kept(runner.step(batch))
    cache.clear()
    assert torch.allclose(again[0], runner.step([scheduled(cache, prompt_of(0, 12))])[0], atol=1e-3)


def test_prompts_are_bounded_and_belong_to_one_adapter(parts: Parts):
    runner, cache, prompts = parts
    for seed in range(MAX_PROMPTS + 3):
        one = scheduled(cache, prompt_of(seed, 40), 0)
        runner.step([one])
        prompts.store(one.kv_slot, "digest", one.token_ids)
        cache.free(one.kv_slot)
    assert prompts.num_tokens == 40 * MAX_PROMPTS
    fresh = cache.allocate(64)
    assert prompts.load(fresh, "other", prompt_of(10, 40)) == 0
    assert prompts.load(fresh, "digest", prompt_of(0, 40)) == 0  # the least recently used one is gone
    assert prompts.load(fresh, "digest", prompt_of(10, 40)) == 39
    prompts.remove("digest")
    assert prompts.num_tokens == 0


def test_a_sequence_that_finds_no_room_waits(parts: Parts):
    _, cache, _ = parts
    slots = [cache.allocate(cache.max_tokens // 4) for _ in range(4)]
    assert all(slots)
    assert cache.allocate(64) is None
    cache.free(slots[0])
    assert cache.allocate(64) is not None
    assert not cache.can_ever_fit(cache.max_tokens + 1)
