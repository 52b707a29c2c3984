"""Intervals of measured values: the bootstrap's percentiles (Efron and Tibshirani, 1993), over records.

All contenders are measured on the same records, and the same seed draws the same ones, so ratios are paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95 % interval.

    Attributes:
        value: On all records.
        low: Lower end of the interval; the value itself if there are fewer than two records.
        high: Its upper end.
    """

    value: float
    low: float
    high: float


def mean(values: Sequence[float], *, resamples: int, seed: int) -> Estimate:
    """The mean of one value for each record.

    Args:
        values: At least one.
        resamples: How often to draw as many records, with replacement.
        seed: Of these draws.
    """
    return _bootstrap((values,), lambda each, axis: np.mean(each, axis), resamples, seed)


def perplexity(losses: Sequence[float], tokens: Sequence[int], *, resamples: int, seed: int) -> Estimate:
    """The perplexity of all tokens: exp(sum of losses / number of tokens), so long records count more.

    Args:
        losses: For each record the sum of its tokens' losses, nats.
        tokens: For each record its number of tokens.
        resamples: As for `mean`.
        seed: As for `mean`.
    """

    def statistic(loss: Any, count: Any, axis: int) -> Any:
        with np.errstate(over="ignore"):  # a loss of 710 nats a token is infinite perplexity
            return np.exp(np.sum(loss, axis) / np.sum(count, axis))

    return _bootstrap((losses, tokens), statistic, resamples, seed)


def perplexity_ratio(
    losses: Sequence[float], baseline: Sequence[float], tokens: Sequence[int], *, resamples: int, seed: int
) -> Estimate:
    """The perplexity divided by that of a baseline on the same records; below 1 is better.

    Args:
        losses: As for `perplexity`.
        baseline: The same of the baseline.
        tokens: As for `perplexity`.
        resamples: As for `mean`.
        seed: As for `mean`.
    """
    differences = [one - other for one, other in zip(losses, baseline, strict=True)]
    return perplexity(differences, tokens, resamples=resamples, seed=seed)


def _bootstrap(
    samples: tuple[Sequence[float], ...], statistic: Callable[..., Any], resamples: int, seed: int
) -> Estimate:
    arrays = tuple(np.asarray(sample, dtype=float) for sample in samples)
    value = float(statistic(*arrays, axis=0))
    if len(arrays[0]) < 2 or not math.isfinite(value):
        return Estimate(value, value, value)
    from scipy.stats import bootstrap

    interval = bootstrap(
        arrays,
        statistic,
        n_resamples=resamples,
        batch=100,  # of 10,000 records: 8 MB
        paired=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))
