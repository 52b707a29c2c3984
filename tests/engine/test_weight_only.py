"""Bases in int4 and 8-bit weights, served with adapters: transformers and PEFT over the dequantised weights agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from adapterhub.base.loading import load_base
from adapterhub.base.quantized_weights import dequantize_module_weight
from adapterhub.base.weight_only import WeightOnlyLinear
from adapterhub.engine.batching import BatchingEngine
from adapterhub.engine.runner import ScheduledSequence
from adapterhub.engine.runners.packed import PackedRunner
from adapterhub.lora.loading import load_folder_deltas
from tests.engine.maker import (
    Reference,
    adapter_settings,
    make_adapters,
    prompt_of,
    request,
    sources_of,
)
from tests.tiny import make_base

ADAPTERS = ("all-16", "dora-16", "lora-4")
NAMES = (None, *ADAPTERS)
PROMPTS = {
    name: prompt_of(seed, length)
    for seed, (name, length) in enumerate(zip(NAMES, (9, 5, 20, 3), strict=True))
}


class World:
    """A base, adapters for it, and PEFT over a model with the weights of a quantised base."""

    def __init__(self, root: Path, kind: str) -> None:
        self.base = make_base(root / "base", kind)
        settings = adapter_settings(kind)
        self.adapters = make_adapters(root, self.base, {name: settings[name] for name in ADAPTERS})

    def reference(self, quantization: Any) -> Reference:
        model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        quantised = load_base(self.base, quantization=quantization, device="cpu").model
        replaced = 0
        for name, layer in quantised.named_modules():
            if isinstance(layer, WeightOnlyLinear):
                own = model.get_submodule(name).weight
                weight = dequantize_module_weight(layer)
                own.data = (
                    weight
                    if isinstance(model.get_submodule(name), torch.nn.Linear)
                    else weight.T.contiguous()
                )
                replaced += 1
        assert replaced
        return Reference(model, self.adapters)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def world(request, tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("quantization", ["int4", "int8_weight_only"])
def test_greedy_tokens_are_those_of_peft_where_nothing_is_rounded(world: World, quantization):
    """In float32 the weights are dequantised, and each answer in a mixed batch has to be PEFT's alone."""
    peft = world.reference(quantization)
    base = load_base(world.base, quantization=quantization, compute_dtype="float32", device="cpu")
    engine, sources = BatchingEngine(base), sources_of(world.adapters)
    got = engine.generate([request(PROMPTS[name], sources.get(name or "")) for name in NAMES])
    assert {name: list(one[0].token_ids) for name, one in zip(NAMES, got, strict=True)} == {
        name: peft.generate(name, PROMPTS[name], 12) for name in NAMES
    }
    stats = engine.stats()
    assert (stats.matmul_dtype, stats.quantization) == ("float32", quantization)
    assert stats.weight_bytes == base.weight_bytes
    engine.close()


@pytest.mark.parametrize("quantization", ["int4", "int8_weight_only"])
def test_logits_of_the_kernel_are_those_of_peft_but_for_rounding(world: World, quantization):
    peft = world.reference(quantization)
    base = load_base(world.base, quantization=quantization, device="cpu")
    layers = base.linear_layers
    runner = PackedRunner(base, max_loras=len(ADAPTERS))
    for slot, name in enumerate(ADAPTERS):
        deltas = load_folder_deltas(world.adapters[name], base.model, layers, dtype=torch.float32)
        runner.load_adapter(slot, deltas)
    cache, _ = runner.make_caches(2**24)
    slots = {name: ADAPTERS.index(name) if name else None for name in NAMES}
    rows = [
        ScheduledSequence(cache.allocate(len(PROMPTS[name])), PROMPTS[name], slots[name], True)
        for name in NAMES
    ]
    for name, logits in zip(NAMES, runner.step(rows), strict=True):
        expected = peft.logits(name, PROMPTS[name])[-1]
        # A share of what the proof takes for rounding to bfloat16.
        assert (logits.float() - expected).std() <= 0.1 * expected.std()
