"""How good a router's decisions are, on requests that it did not learn from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapterhub.routing.decision import RouteDecision

BINS = 15
"""Bins of the reliability curve and of the calibration error."""


@dataclass(frozen=True)
class Bin:
    """The decisions whose confidences lie in one of equal ranges."""

    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Point:
    """What one threshold would do: the share of requests kept, and of out-of-scope ones refused."""

    threshold: float
    retention: float
    recall: float


@dataclass(frozen=True)
class Evaluation:
    """Measures of a router, each a share from 0 to 1; None where there was nothing to measure it on.

    Attributes:
        count: Requests that belong to some adapter.
        out_of_scope: Requests that belong to none.
        accuracy: How often the best route is the right one, whatever the threshold.
        retention: Requests that were not sent to the fallback.
        accuracy_of_kept: How often those went to the right adapter.
        routed_right: Requests that really went to the right adapter.
        recall: Out-of-scope requests that were sent to the fallback.
        auroc: The chance that a request has a higher confidence than an out-of-scope one.
        calibration_error: Mean distance of confidence and accuracy over `BINS` ranges (expected calibration error).
        confusion: Right adapter -> where its requests went; "" is the fallback.
        reliability: The ranges of confidence that occurred.
        curve: Retention against recall, by threshold.
    """

    count: int
    out_of_scope: int
    accuracy: float | None
    retention: float | None
    accuracy_of_kept: float | None
    routed_right: float | None
    recall: float | None
    auroc: float | None
    calibration_error: float | None
    confusion: Mapping[str, Mapping[str, int]]
    reliability: tuple[Bin, ...]
    curve: tuple[Point, ...]


def evaluate(
    decisions: Mapping[str, Sequence[RouteDecision]], out_of_scope: Sequence[RouteDecision] = ()
) -> Evaluation:
    """Measures decisions.

    Args:
        decisions: Right adapter -> the decisions about its requests.
        out_of_scope: The decisions about requests for no adapter.
    """
    pairs = [(name, one) for name, found in decisions.items() for one in found]
    right = np.array([one.best == name for name, one in pairs], dtype=bool)
    kept = np.array([not one.fallback for _, one in pairs], dtype=bool)
    sent = np.array([one.adapter == name and not one.fallback for name, one in pairs], dtype=bool)
    inside = np.array([one.confidence for _, one in pairs])
    outside = np.array([one.confidence for one in out_of_scope])
    ranges = _reliability(inside, right)
    return Evaluation(
        count=len(pairs),
        out_of_scope=len(outside),
        accuracy=_mean(right),
        retention=_mean(kept),
        accuracy_of_kept=_mean(sent[kept]),
        routed_right=_mean(sent),
        recall=_mean(np.array([one.fallback for one in out_of_scope], dtype=bool)),
        auroc=_auroc(inside, outside),
        calibration_error=_error(ranges, len(pairs)),
        confusion={
            name: dict(Counter(one.adapter or "" for one in found)) for name, found in decisions.items()
        },
        reliability=ranges,
        curve=_curve(inside, outside),
    )


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _auroc(inside: np.ndarray, outside: np.ndarray) -> float | None:
    if not len(inside) or not len(outside):
        return None
    from sklearn.metrics import roc_auc_score

    truth = np.repeat([1, 0], [len(inside), len(outside)])
    return float(roc_auc_score(truth, np.concatenate([inside, outside])))


def _reliability(confidences: np.ndarray, right: np.ndarray) -> tuple[Bin, ...]:
    places = np.minimum((confidences * BINS).astype(int), BINS - 1)
    masks = (places == place for place in range(BINS))
    return tuple(
        Bin(int(mask.sum()), float(confidences[mask].mean()), float(right[mask].mean()))
        for mask in masks
        if mask.any()
    )


def _error(ranges: Sequence[Bin], count: int) -> float | None:
    if not count:
        return None
    return sum(one.count * abs(one.confidence - one.accuracy) for one in ranges) / count


def _curve(inside: np.ndarray, outside: np.ndarray) -> tuple[Point, ...]:
    if not len(inside) or not len(outside):
        return ()
    thresholds = np.unique(np.quantile(np.concatenate([inside, outside]), np.linspace(0, 1, 101)))
    return tuple(
        Point(float(t), float((inside >= t).mean()), float((outside < t).mean())) for t in thresholds
    )
