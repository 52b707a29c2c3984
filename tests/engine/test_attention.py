"""Attention over a packed step of lanes against attention over each answer alone."""

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
SHAPE = KVShape(layers=2, heads=KV_HEADS, head_dim=WIDTH, dtype=torch.float32, device=CPU)
LAYER = SimpleNamespace(layer_idx=1)
answers = st.lists(
    st.tuples(st.integers(0, 70), st.sampled_from([1, 1, 1, 2, 9]), st.booleans(), st.booleans()),
    min_size=1,
    max_size=7,
)


def one_by_one(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, past: int, window: int | None
) -> torch.Tensor:
    """Token by token and head by head, as it is written down: softmax(q k / sqrt(d)) v over what a token may see."""
    out = torch.empty_like(q)
    for token in range(len(q)):
        end = past + token + 1
        start = max(0, end - window) if window else 0
        for head in range(HEADS):
            own = head // (HEADS // KV_HEADS)
            weights = (keys[own, start:end] @ q[token, head] * WIDTH**-0.5).softmax(0)
            out[token, head] = weights @ values[own, start:end]
    return out


@settings(max_examples=60)
@given(answers, st.sampled_from([None, 1, 5, 64]), st.integers(0, 100))
def test_every_answer_sees_its_own_tokens(
    answers: list[tuple[int, int, bool, bool]], window: int | None, seed: int
):
    """(tokens before, tokens now, a long lane, takes part) for each; what others hold may even be NaN."""
    random = torch.Generator().manual_seed(seed)
    cache, spans, pasts, start = KVCache(SHAPE, 10_000), [], [], 0
    for before, count, long, takes_part in answers:
        lane = cache.take(200 if long else 80)
        assert lane
        if takes_part:
            lane.write(0, torch.randn(2, 2, KV_HEADS, before, WIDTH, generator=random))
            spans.append(QuerySpan(lane, start, count))
            pasts.append(lane.read(0, before)[:, LAYER.layer_idx])
            start += count
        else:
            lane.write(0, torch.full((2, 2, KV_HEADS, before + 1, WIDTH), torch.nan))
    if not spans:
        return
    q = torch.randn(1, HEADS, start, WIDTH, generator=random)
    k, v = (torch.randn(1, KV_HEADS, start, WIDTH, generator=random) for _ in range(2))
    step = AttentionMetadata(spans, CPU, torch.float32)
    got, _ = attend(LAYER, q, k, v, None, sliding_window=window, attn_metadata=step)  # type: ignore[arg-type]
    for span, past in zip(spans, pasts, strict=True):
        own = slice(span.start, span.start + span.count)
        keys, values = (torch.cat([past[i], new[0, :, own]], dim=1) for i, new in enumerate((k, v)))
        wanted = one_by_one(q[0, :, own].transpose(0, 1), keys, values, past.shape[2], window)
        assert torch.allclose(got[0, own], wanted, atol=1e-5)
        # The keys and values are where the next step looks for them; the length is the runner's to change.
        held = span.lane.read(0, past.shape[2] + span.count)[:, LAYER.layer_idx]
        assert torch.equal(held[0], keys)
        assert torch.equal(held[1], values)
        assert span.lane.length == past.shape[2]


def test_a_base_is_not_called_outside_its_engine(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_base(tmp_path))
    use_packed_attention(model)
    with pytest.raises(EngineError, match="outside its engine"):
        model(input_ids=torch.tensor([[5, 6]]), use_cache=False)


@pytest.mark.parametrize("extra", [{"softcap": 30.0}, {"s_aux": torch.zeros(HEADS)}])
def test_what_cannot_be_computed_is_refused(extra: dict[str, object]):
    lane = KVCache(SHAPE, 100).take(10)
    assert lane
    q = torch.zeros(1, HEADS, 1, WIDTH)
    k = torch.zeros(1, KV_HEADS, 1, WIDTH)
    step = AttentionMetadata([QuerySpan(lane, 0, 1)], CPU, torch.float32)
    with pytest.raises(EngineError, match="caps its scores or has sink tokens"):
        attend(LAYER, q, k, k, None, attn_metadata=step, **extra)  # type: ignore[arg-type]
