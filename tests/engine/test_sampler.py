"""One token from a row of logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.generation.logits_process import TopPLogitsWarper

from adapterhub.engine.decoding.sampler import Logits, Sampler, TopP
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.errors import GenerationError

CPU = torch.device("cpu")


def sampler(**settings) -> Sampler:
    return Sampler(SamplingParams(temperature=1.0, seed=0, **settings), 0, CPU)


def drawn(
    own: Sampler, values: torch.Tensor, count: int, allowed: torch.Tensor | None = None
) -> torch.Tensor:
    """How often each token is drawn."""
    (logits,) = Logits.of(values[None])
    tokens = [own.draw(logits, allowed)[0] for _ in range(count)]
    return torch.bincount(torch.tensor(tokens), minlength=len(values))


def test_tokens_come_as_often_as_they_are_likely():
    shares = torch.tensor([0.5, 0.25, 0.15, 0.1])
    counts = drawn(sampler(), shares.log(), 20_000)
    # Four standard deviations of a share; the seed is fixed.
    assert ((counts / 20_000 - shares).abs() < 4 * (shares * (1 - shares) / 20_000).sqrt()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_maximum_of_each_row_is_found_the_first_of_equal_ones_and_nan_if_there_is_one(dtype: torch.dtype):
    rows = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)).to(dtype)
    rows[0, [7, 400]], rows[1, 999], rows[2, 3] = 50.0, torch.inf, torch.nan
    first, second, third, last = Logits.of(rows)
    assert (first.argmax, first.maximum) == (7, 50.0)
    assert (second.argmax, second.maximum) == (999, float("inf"))
    assert third.maximum != third.maximum
    assert rows[3, last.argmax] == last.maximum == rows[3].max()


@pytest.mark.parametrize("size", [2, 3000, 128_000])
def test_what_is_not_allowed_is_never_drawn(size: int):
    allowed = torch.zeros(size, dtype=torch.bool)
    allowed[[0, size // 2]] = True
    for mask in (allowed, allowed.flip(0)):
        counts = drawn(sampler(), torch.zeros(size), 200, mask)
        assert counts[mask].min() > 50
        assert counts[~mask].sum() == 0


def test_minus_infinity_is_never_drawn():
    values = torch.full((1000,), -torch.inf)
    values[[3, 999]] = 0.0
    assert drawn(sampler(), values, 200).nonzero().squeeze(1).tolist() == [3, 999]


def test_infinity_is_an_error_and_no_token():
    (logits,) = Logits.of(torch.tensor([[0.0, float("inf")]]))
    with pytest.raises(GenerationError, match="NaN"):
        sampler().draw(logits)


@pytest.mark.spec("2-I1")
@given(st.integers(0, 1000), st.sampled_from([1, 5, 1500, 5000]), st.floats(0.01, 0.999), st.floats(0.1, 8.0))
def test_top_p_keeps_what_transformers_keeps(seed: int, size: int, top_p: float, spread: float):
    scores = spread * torch.randn(1, size, generator=torch.Generator().manual_seed(seed))
    ours, theirs = (keep(None, scores).isfinite() for keep in (TopP(top_p), TopPLogitsWarper(top_p)))
    differ = (ours != theirs).sum()
    # The two add up from opposite ends, so rounding may move the last token in or out.
    assert differ <= 1
    probabilities = scores.softmax(-1)
    assert probabilities[ours & ~theirs].sum() + probabilities[theirs & ~ours].sum() < 1e-3 or not differ


def test_top_p_leaves_the_scores_of_what_it_keeps():
    scores = torch.tensor([[0.5, 0.3, 0.2]]).log()
    assert TopP(0.6)(None, scores).tolist() == [[scores[0, 0].item(), scores[0, 1].item(), -torch.inf]]
