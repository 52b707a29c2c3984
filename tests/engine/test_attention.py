"""Attention over a packed step of many sequences against attention over each sequence alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from adapterhub.engine.kv.attention import AttentionMetadata, QuerySpan, attend, use_packed_attention
from adapterhub.engine.kv.cache import KVCache, KVShape
from adapterhub.errors import EngineError
from tests.tiny import make_base

HEADS, KV_HEADS, WIDTH = 4, 2, 8
CPU = torch.device("cpu")
SHAPE = KVShape(num_layers=2, num_kv_heads=KV_HEADS, head_dim=WIDTH, dtype=torch.float32, device=CPU)
LAYER = SimpleNamespace(layer_idx=1)
sequences = st.lists(
    st.tuples(st.integers(0, 70), st.sampled_from([1, 1, 1, 2, 9]), st.booleans(), st.booleans()),
    min_size=1,
    max_size=7,
)


def one_by_one(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, past: int, window: int | None
) -> torch.Tensor:
    """The definition, token by token and head by head: softmax(q k / sqrt(d)) v over what a token may attend to."""
    out = torch.empty_like(q)
    for token in range(len(q)):
        end = past + token + 1
        start = max(0, end - window) if window else 0
        for head in range(HEADS):
            kv_head = head // (HEADS // KV_HEADS)
            weights = (keys[kv_head, start:end] @ q[token, head] * WIDTH**-0.5).softmax(0)
            out[token, head] = weights @ values[kv_head, start:end]
    return out


@settings(max_examples=60)
@given(sequences, st.sampled_from([None, 1, 5, 64]), st.integers(0, 100))
def test_every_sequence_attends_to_its_own_tokens(
    sequences: list[tuple[int, int, bool, bool]], window: int | None, seed: int
):
    """(tokens before, tokens now, a large slot, takes part) for each; other slots may even hold NaN."""
    random = torch.Generator().manual_seed(seed)
    cache, spans, pasts, start = KVCache(SHAPE, 10_000), [], [], 0
    for before, count, large, takes_part in sequences:
        slot = cache.allocate(200 if large else 80)
        assert slot
        if takes_part:
            slot.write(0, torch.randn(2, 2, KV_HEADS, before, WIDTH, generator=random))
            spans.append(QuerySpan(slot, start, count))
            pasts.append(slot.read(0, before)[:, LAYER.layer_idx])
            start += count
        else:
            slot.write(0, torch.full((2, 2, KV_HEADS, before + 1, WIDTH), torch.nan))
    if not spans:
        return
    q = torch.randn(1, HEADS, start, WIDTH, generator=random)
    k, v = (torch.randn(1, KV_HEADS, start, WIDTH, generator=random) for _ in range(2))
    step = AttentionMetadata(spans, CPU, torch.float32)
    got, _ = attend(LAYER, q, k, v, None, sliding_window=window, attn_metadata=step)  # type: ignore[arg-type]
    for span, past in zip(spans, pasts, strict=True):
        part = slice(span.start, span.start + span.count)
        keys, values = (torch.cat([past[i], new[0, :, part]], dim=1) for i, new in enumerate((k, v)))
        expected = one_by_one(q[0, :, part].transpose(0, 1), keys, values, past.shape[2], window)
        assert torch.allclose(got[0, part], expected, atol=1e-5)
        # The keys and values are stored for the next step; the runner changes the length.
        stored = span.kv_slot.read(0, past.shape[2] + span.count)[:, LAYER.layer_idx]
        assert torch.equal(stored[0], keys)
        assert torch.equal(stored[1], values)
        assert span.kv_slot.length == past.shape[2]


def test_a_base_cannot_be_called_outside_its_engine(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_base(tmp_path))
    use_packed_attention(model)
    with pytest.raises(EngineError, match="outside its engine"):
        model(input_ids=torch.tensor([[5, 6]]), use_cache=False)


@pytest.mark.parametrize("extra", [{"softcap": 30.0}, {"s_aux": torch.zeros(HEADS)}])
def test_unsupported_attention_is_refused(extra: dict[str, object]):
    slot = KVCache(SHAPE, 100).allocate(10)
    assert slot
    q = torch.zeros(1, HEADS, 1, WIDTH)
    k = torch.zeros(1, KV_HEADS, 1, WIDTH)
    step = AttentionMetadata([QuerySpan(slot, 0, 1)], CPU, torch.float32)
    with pytest.raises(EngineError, match="soft-caps its scores or has attention sinks"):
        attend(LAYER, q, k, k, None, attn_metadata=step, **extra)  # type: ignore[arg-type]
