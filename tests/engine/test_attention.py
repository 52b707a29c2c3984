"""Attention over a packed step of many sequences against attention over each sequence alone."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, masking_utils
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from adapterhub.engine.kv.attention import AttentionCall, PackedAttention
from adapterhub.engine.kv.cache import KVCache, KVSlot
from adapterhub.engine.kv.decode_kernel import DecodeKernel
from adapterhub.engine.kv.masks import CAUSAL, AttentionMask
from adapterhub.engine.kv.packed_call import QuerySpan
from adapterhub.engine.kv.packed_step import AttentionMetadata
from adapterhub.engine.kv.probing import AttentionLayer, AttentionProbe
from adapterhub.engine.kv.shape import KVShape, LayerShape
from adapterhub.errors import EngineError
from tests.tiny import make_base

HEADS, KV_HEADS, WIDTH, VALUE_WIDTH = 4, 2, 8, 6
CPU = torch.device("cpu")
SHAPE = KVShape((LayerShape(1, 3, 3), LayerShape(KV_HEADS, WIDTH, VALUE_WIDTH)), torch.float32, CPU)
LAYER = 1
sequences = st.lists(
    st.tuples(st.integers(0, 70), st.sampled_from([1, 1, 1, 2, 9]), st.booleans(), st.booleans()),
    min_size=1,
    max_size=7,
)


@dataclass(frozen=True)
class Scoring:
    """How the scores of one layer are made."""

    window: int | None = None
    softcap: float | None = None
    sinks: tuple[float, ...] | None = None


def one_by_one(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, past: int, scoring: Scoring
) -> torch.Tensor:
    """The definition, token by token and head by head: softmax(q k / sqrt(d)) v over what a token may attend to."""
    out = torch.empty(*q.shape[:2], VALUE_WIDTH)
    for token in range(len(q)):
        end = past + token + 1
        start = max(0, end - scoring.window) if scoring.window else 0
        for head in range(HEADS):
            kv_head = head // (HEADS // KV_HEADS)
            scores = keys[kv_head, start:end] @ q[token, head] * WIDTH**-0.5
            if scoring.softcap:
                scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
            if scoring.sinks:
                scores = torch.cat([scores, torch.tensor([scoring.sinks[head]])])
            out[token, head] = scores.softmax(0)[: end - start] @ values[kv_head, start:end]
    return out


def kept(slot: KVSlot, length: int) -> list[torch.Tensor]:
    """Copies of the layer's keys and values in a slot."""
    return [tensor[slot.index, :, :length].clone() for tensor in slot.pool.keys_and_values(LAYER)]


scorings = st.builds(
    Scoring,
    st.sampled_from([None, 1, 5, 64]),
    st.sampled_from([None, None, 0.5]),
    st.sampled_from([None, None, (0.5, -1.0, 2.0, 0.0)]),
)


@pytest.mark.parametrize("kernel", [None, DecodeKernel.find(CPU, torch.float32)], ids=["torch", "c++"])
@settings(max_examples=60)
@given(sequences, scorings, st.integers(0, 100))
def test_every_sequence_attends_to_its_own_tokens(
    kernel: DecodeKernel | None,
    sequences: list[tuple[int, int, bool, bool]],
    scoring: Scoring,
    seed: int,
):
    """(tokens before, tokens now, a large slot, takes part) for each; other slots may even hold NaN."""
    random = torch.Generator().manual_seed(seed)
    cache, spans, pasts, start = KVCache(SHAPE, 10_000), [], [], 0
    for before, count, large, takes_part in sequences:
        slot = cache.allocate(200 if large else 80)
        assert slot
        length = before + (not takes_part)
        sizes = [(2, 1, length, 3), (1, KV_HEADS, length, WIDTH), (1, KV_HEADS, length, VALUE_WIDTH)]
        slot.write(0, [torch.randn(size, generator=random) for size in sizes])
        if takes_part:
            spans.append(QuerySpan(slot, start, count))
            pasts.append(kept(slot, before))
            start += count
        else:
            for tensor in slot.pool.tensors:
                tensor[slot.index] = torch.nan
    if not spans:
        return
    q, k, v = (
        torch.randn(1, count, start, width, generator=random)
        for count, width in ((HEADS, WIDTH), (KV_HEADS, WIDTH), (KV_HEADS, VALUE_WIDTH))
    )
    mask = AttentionMask.of_window(scoring.window) if scoring.window else CAUSAL
    step = AttentionMetadata(spans, CPU, torch.float32, [AttentionLayer(LAYER, mask=mask)], kernel)
    sinks = torch.tensor(scoring.sinks) if scoring.sinks else None
    got = step.attend(
        AttentionCall(torch.nn.Module(), q, k, v, WIDTH**-0.5, softcap=scoring.softcap, sinks=sinks)
    )
    for span, past in zip(spans, pasts, strict=True):
        part = slice(span.start, span.start + span.count)
        keys, values = (
            torch.cat([old, new[0, :, part]], dim=1) for old, new in zip(past, (k, v), strict=True)
        )
        length = past[0].shape[1]
        expected = one_by_one(q[0, :, part].transpose(0, 1), keys, values, length, scoring)
        assert torch.allclose(got[0, part], expected, atol=1e-5)
        # The keys and values are stored for the next step; the runner changes the length.
        stored = kept(span.kv_slot, length + span.count)
        assert torch.equal(stored[0], keys)
        assert torch.equal(stored[1], values)
        assert span.kv_slot.length == length


def test_a_call_that_shares_keys_and_values_reads_those_of_the_earlier_one():
    slot = KVCache(SHAPE, 1000).allocate(80)
    assert slot
    layers = [AttentionLayer(LAYER), AttentionLayer(LAYER, shares_kv=True)]
    q, k, v = (
        torch.randn(1, count, 5, width) for count, width in ((HEADS, WIDTH), (KV_HEADS, WIDTH), (KV_HEADS, 6))
    )
    step = AttentionMetadata([QuerySpan(slot, 0, 5)], CPU, torch.float32, layers)
    module = torch.nn.Module()
    first = step.attend(AttentionCall(module, q, k, v, 1.0))
    assert torch.equal(step.attend(AttentionCall(module, q, k + 1, v + 1, 1.0)), first)


def test_a_base_cannot_be_called_outside_its_engine_until_its_attention_is_given_back(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_base(tmp_path))
    prompt = torch.tensor([[5, 6]])
    before = model(prompt).logits
    attention = PackedAttention(model)
    with pytest.raises(EngineError, match="outside its engine"):
        model(prompt, use_cache=False)
    attention.undo()
    assert torch.equal(model(prompt).logits, before)


@pytest.mark.parametrize("name", ["position_bias", "sinks", "indices", "block_indices"])
def test_what_is_not_computed_is_refused(tmp_path, name: str):
    model = AutoModelForCausalLM.from_pretrained(make_base(tmp_path))
    attention = PackedAttention(model)
    attend = ALL_ATTENTION_FUNCTIONS[model.config._attn_implementation]
    q = torch.zeros(1, HEADS, 1, WIDTH)
    with (
        attention.using(AttentionProbe()),
        pytest.raises(EngineError, match="cannot be computed in a packed batch"),
    ):
        attend(model.model.layers[0].self_attn, q, q, q, None, **{name: torch.zeros(1)})


@pytest.mark.parametrize(
    ("function", "causal_until"),
    [
        (masking_utils.causal_mask_function, 1 << 17),
        (masking_utils.sliding_window_causal_mask_function(6), 6),
        (masking_utils.chunked_causal_mask_function(8, torch.zeros(1, dtype=torch.long)), 8),
    ],
)
def test_a_mask_is_the_causal_one_up_to_a_length(function, causal_until: int):
    mask = AttentionMask.of_function(function, CPU)
    assert mask.causal_until == causal_until
    assert mask.up_to(causal_until) is CAUSAL
    assert mask.up_to(causal_until + 1) is mask
    positions = torch.arange(min(causal_until, 50))
    assert torch.equal(mask.visible(positions[:, None], positions), positions <= positions[:, None])


def test_a_mask_that_shows_later_tokens_is_refused():
    with pytest.raises(EngineError, match="attend to later ones"):
        AttentionMask.of_function(masking_utils.bidirectional_mask_function, CPU)


def test_a_mask_of_the_blocks_of_one_prompt_is_refused():
    blocks = masking_utils.blockwise_overlay(torch.tensor([[-1]]))
    with pytest.raises(EngineError, match="made for one prompt"):
        AttentionMask.of_function(masking_utils.or_masks(masking_utils.causal_mask_function, blocks), CPU)
