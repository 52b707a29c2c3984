"""The compiled attention of sequences that decode against its definition in float64."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub._compiling import CompilingError
from adapterhub.engine.kv import decode_kernel
from adapterhub.engine.kv.cache import KVCache, KVSlot
from adapterhub.engine.kv.decode_kernel import DecodeKernel, describe_decode_attention
from adapterhub.engine.kv.masks import CAUSAL, AttentionMask
from adapterhub.engine.kv.packed_call import QuerySpan
from adapterhub.engine.kv.packed_step import AttentionMetadata
from adapterhub.engine.kv.probing import AttentionLayer
from adapterhub.engine.kv.shape import KVShape, LayerShape
from adapterhub.errors import ConfigError, EngineError

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16]
needs_compiler = pytest.mark.skipif(
    DecodeKernel.find(CPU, torch.float32) is None, reason="decode_attention.cpp cannot be compiled here"
)
# By the definition in float64; outputs are weighted means of values of about 1. bfloat16 rounds the output once.
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2**-8}


@dataclass(frozen=True)
class Layer:
    """A layer's attention, and the tokens before those of the step."""

    kv_heads: int
    group: int
    key_width: int
    value_width: int
    pasts: tuple[int, ...]
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    dtype: torch.dtype = torch.float32
    seed: int = 0


layers = st.builds(
    Layer,
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 9),
    key_width=st.sampled_from([1, 3, 8, 16, 33, 64, 80, 128, 192]),
    value_width=st.sampled_from([1, 5, 16, 32, 48, 64, 100, 128]),
    pasts=st.lists(st.sampled_from([0, 1, 2, 14, 15, 16, 17, 40, 63, 64, 200]), min_size=1, max_size=6).map(
        tuple
    ),
    window=st.sampled_from([None, None, 1, 20]),
    softcap=st.sampled_from([None, None, 0.5, 30.0]),
    sinks=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 100),
)


class Step:
    """A step with a layer of random keys and values, whose unused places hold NaN."""

    def __init__(self, layer: Layer) -> None:
        self.layer, self.random = layer, torch.Generator().manual_seed(layer.seed)
        self.shape = KVShape(
            (LayerShape(1, 2, 2), LayerShape(layer.kv_heads, layer.key_width, layer.value_width)),
            layer.dtype,
            CPU,
        )
        cache = KVCache(self.shape, 10_000)
        self.slots = [self._slot(cache, past) for past in layer.pasts]
        count, heads = len(self.slots), layer.kv_heads * layer.group
        # Heads before tokens in memory, as transformers' models have them.
        self.q = self._randn(heads, count, layer.key_width).transpose(0, 1)
        self.k = self._randn(layer.kv_heads, count, layer.key_width).transpose(0, 1)
        self.v = self._randn(layer.kv_heads, count, layer.value_width).transpose(0, 1)
        self.sinks = self._randn(heads) if layer.sinks else None
        self.mask = AttentionMask.of_window(layer.window) if layer.window else CAUSAL
        self.scale = layer.key_width**-0.5

    def attend(self, rows: list[int] | None = None, kernel: DecodeKernel | None = None) -> torch.Tensor:
        """The output of some of the sequences, in a step of their own."""
        rows = list(range(len(self.slots))) if rows is None else rows
        spans = [QuerySpan(self.slots[row], index, 1) for index, row in enumerate(rows)]
        kernel = kernel or DecodeKernel.find(CPU, self.layer.dtype)
        step = AttentionMetadata(spans, CPU, self.layer.dtype, [AttentionLayer(1, mask=self.mask)], kernel)
        return step.attend_tokens(
            *(one[rows] for one in (self.q, self.k, self.v)),
            self.scale,
            softcap=self.layer.softcap,
            sinks=self.sinks,
        )

    def expected(self, row: int) -> torch.Tensor:
        """The output of one sequence by the definition, of what its slot holds after the step."""
        layer, slot = self.layer, self.slots[row]
        end = slot.length + 1
        start = max(0, end - layer.window) if layer.window else 0
        keys, values = (one[slot.index, :, start:end].double() for one in slot.pool.keys_and_values(1))
        keys, values = (one.repeat_interleave(layer.group, 0) for one in (keys, values))
        scores = (keys @ self.q[row].double()[:, :, None])[..., 0] * self.scale
        if layer.softcap:
            scores = layer.softcap * torch.tanh(scores / layer.softcap)
        if self.sinks is not None:
            scores = torch.cat([scores, self.sinks.double()[:, None]], -1)
        weights = scores.softmax(-1)[:, : end - start]
        return (weights[:, None] @ values)[:, 0]

    def _randn(self, *size: int) -> torch.Tensor:
        return torch.randn(size, generator=self.random).to(self.layer.dtype)

    def _slot(self, cache: KVCache, past: int) -> KVSlot:
        slot = cache.allocate(past + 1)
        assert slot
        for tensor in slot.pool.tensors:
            tensor[slot.index] = torch.nan
            tensor[slot.index, :, :past] = self._randn(tensor.shape[1], past, tensor.shape[3])
        slot.length = past
        return slot


def bits(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """What can be compared where there is NaN."""
    return [tensor.contiguous().view(torch.int16).clone() for tensor in tensors]


@needs_compiler
@settings(max_examples=150, deadline=None)
@given(layers)
def test_the_kernel_computes_the_definition_and_stores_the_tokens_alone(layer: Layer):
    step = Step(layer)
    pools = list({id(slot.pool): slot.pool for slot in step.slots}.values())
    before = [tensor.clone() for pool in pools for tensor in pool.tensors]
    got = step.attend()
    for row, slot in enumerate(step.slots):
        assert torch.allclose(
            got[row].double(), step.expected(row), rtol=TOLERANCES[layer.dtype], atol=TOLERANCES[layer.dtype]
        )
        keys, values = slot.pool.keys_and_values(1)
        for stored, new in ((keys, step.k), (values, step.v)):
            assert torch.equal(stored[slot.index, :, slot.length], new[row])
            stored[slot.index, :, slot.length] = torch.nan
    after = [tensor for pool in pools for tensor in pool.tensors]
    assert all(map(torch.equal, bits(before), bits(after)))


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_is_computed_the_same_alone_in_company_and_by_several_threads(dtype: torch.dtype):
    step = Step(Layer(3, 3, 64, 64, (300, 7, 120, 64, 511, 300), dtype=dtype))
    alone = torch.cat([step.attend([row]) for row in range(6)])
    assert torch.equal(step.attend(), alone)
    assert torch.equal(step.attend([4, 2, 0]), alone[[4, 2, 0]])
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(step.attend(), alone)
    finally:
        torch.set_num_threads(threads)


@needs_compiler
def test_a_nan_is_seen_in_the_output_and_infinite_scores_give_one_too():
    step = Step(Layer(1, 2, 16, 16, (5, 5)))
    step.q[0, 1, 3] = torch.nan
    got = step.attend()
    assert got[0, 1].isnan().all()
    assert got[[0, 1], [0, 0]].isfinite().all()
    step.q[0, 1, 3] = math.inf
    assert step.attend()[0, 1].isnan().any()


@needs_compiler
def test_weights_far_below_the_highest_are_zero():
    step = Step(Layer(1, 1, 16, 16, (3,)))
    keys, _ = step.slots[0].pool.keys_and_values(1)
    step.q[:] = 100.0
    keys[0, :, :3], step.k[:] = -100.0, 100.0
    assert torch.equal(step.attend()[0, 0], step.v[0, 0])


@needs_compiler
def test_what_does_not_fit_the_cache_is_refused_and_writes_nothing():
    step = Step(Layer(2, 2, 16, 16, (5, 5)))
    before = bits(step.slots[0].pool.tensors)
    right = step.q, step.k, step.v
    for wrong in (
        (step.q[:, :3], step.k, step.v),
        (step.q, step.k[..., :8], step.v),
        (step.q, step.k, step.v[:, :1]),
        (step.q[:1], step.k[:1], step.v[:1]),
        (step.q, step.k.double(), step.v),
    ):
        step.q, step.k, step.v = wrong
        spans = [QuerySpan(slot, index, 1) for index, slot in enumerate(step.slots)]
        kernel = DecodeKernel.find(CPU, torch.float32)
        attention = AttentionMetadata(spans, CPU, torch.float32, [AttentionLayer(1)], kernel)
        with pytest.raises(EngineError, match="Attention is called"):
            attention.attend_tokens(*wrong, 1.0)
    step.q, step.k, step.v = right
    step.sinks = torch.zeros(3)
    with pytest.raises(EngineError, match="4 heads, and has 3 sinks"):
        step.attend()
    step.sinks, length = None, step.slots[1].length
    step.slots[1].length = step.slots[1].pool.capacity
    with pytest.raises(EngineError, match="full"):
        step.attend()
    step.slots[1].length = length
    for index in (-1, 2):  # what a freed slot has, and one that no sequence has
        step.slots[1].index = index
        with pytest.raises(EngineError, match="freed"):
            step.attend()
    assert all(map(torch.equal, before, bits(step.slots[0].pool.tensors)))


@needs_compiler
@pytest.mark.parametrize("of", ["keys", "queries"])
def test_a_mask_may_depend_on_keys_or_queries_alone(of: str):
    step = Step(Layer(1, 1, 16, 16, (3, 5)))
    expected = step.attend()
    visible = {"keys": lambda _, keys: keys >= 0, "queries": lambda queries, _: queries >= 0}[of]
    step.mask = AttentionMask(visible, 0)
    for slot in step.slots:  # the longest sequence's keys are masked for the shorter one by its length
        assert slot.length < slot.pool.capacity
    assert torch.equal(step.attend(), expected)


def test_the_kernel_is_for_host_memory_and_can_be_switched_off(monkeypatch):
    assert DecodeKernel.find(torch.device("meta"), torch.float32) is None
    assert DecodeKernel.find(CPU, torch.float16) is None
    monkeypatch.setenv("ADAPTERHUB_ATTENTION_KERNEL", "torch")
    assert DecodeKernel.find(CPU, torch.float32) is None
    assert describe_decode_attention(CPU) == "torch"
    monkeypatch.setenv("ADAPTERHUB_ATTENTION_KERNEL", "fast")
    with pytest.raises(ConfigError, match="ADAPTERHUB_ATTENTION_KERNEL=fast"):
        DecodeKernel.find(CPU, torch.float32)


@pytest.mark.parametrize("failure", ["a compiler that fails", "a library that does not load"])
def test_without_a_library_torch_computes_and_the_reason_is_told(tmp_path, monkeypatch, failure: str):
    def compile_library(source: Path, folder: Path) -> Path:
        if failure == "a compiler that fails":
            raise CompilingError("there is no C++ compiler")
        broken = tmp_path / "broken.so"
        broken.write_bytes(b"no library")
        return broken

    monkeypatch.setattr(decode_kernel, "compile_library", compile_library)
    monkeypatch.setattr(decode_kernel, "_compiled", decode_kernel._compiled.__wrapped__)
    assert DecodeKernel.find(CPU, torch.float32) is None
    reason = "no C.. compiler" if failure == "a compiler that fails" else "broken.so"
    assert re.match(f"torch: .*{reason}", describe_decode_attention(CPU))


@needs_compiler
def test_a_library_is_named():
    assert re.match(r"compiled, .*decode_attention.*\.so$", describe_decode_attention(CPU))
