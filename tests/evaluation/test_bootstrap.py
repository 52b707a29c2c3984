"""Means, perplexities and ratios, with their intervals."""

import math

import numpy as np
import pytest

from adapterhub.evaluation import Estimate
from adapterhub.evaluation.bootstrap import mean, perplexity, perplexity_ratio

DRAWS = {"resamples": 2000, "seed": 0}


def test_the_interval_of_a_mean_is_that_of_its_standard_error():
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    estimate = mean(list(values), **DRAWS)
    error = 1.96 * values.std() / math.sqrt(400)
    assert estimate.value == pytest.approx(values.mean())
    assert (estimate.low, estimate.high) == pytest.approx(
        (values.mean() - error, values.mean() + error), abs=0.03
    )


def test_the_perplexity_counts_each_token_once():
    # 1 token of 4 nats and 3 of 0: the mean over records would be 2 nats, and over tokens it is 1.
    assert perplexity([4.0, 0.0], [1, 3], **DRAWS).value == pytest.approx(math.e)


def test_a_ratio_is_paired():
    losses, tokens = [1.0, 30.0, 2.0, 50.0], [2, 10, 3, 20]
    lower = [loss - 0.5 * count for loss, count in zip(losses, tokens, strict=True)]
    ratio = perplexity_ratio(lower, losses, tokens, **DRAWS)
    # Each token is half a nat cheaper: the ratio is the same whichever records are drawn, and the perplexity is not.
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((math.exp(-0.5),) * 3)
    assert perplexity(losses, tokens, **DRAWS).high > 1.5 * perplexity(losses, tokens, **DRAWS).low


def test_the_same_seed_gives_the_same_interval_and_another_one_does_not():
    values = list(np.random.default_rng(2).normal(size=50))
    one, same, other = (mean(values, resamples=100, seed=seed) for seed in (1, 1, 2))
    assert one == same != other


def test_one_record_has_no_interval_and_an_infinite_perplexity_neither():
    assert mean([3.0], **DRAWS) == Estimate(3.0, 3.0, 3.0)
    assert perplexity([1e6, 1e6], [1, 1], **DRAWS) == Estimate(math.inf, math.inf, math.inf)
