"""Metrics of a router's decisions on labelled requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapterhub.routing.decision import RouteDecision

BINS = 15
"""Bins of the reliability diagram and of the expected calibration error.

scikit-learn's `calibration_curve` bins alike, but returns no counts, which the error needs."""


@dataclass(frozen=True)
class ReliabilityBin:
    """The decisions whose confidence lies in one of `BINS` equal intervals."""

    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class OperatingPoint:
    """Retention and out-of-scope recall at one threshold."""

    threshold: float
    retention: float
    out_of_scope_recall: float


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a router, each from 0 to 1; None if there were no requests to measure it on.

    Attributes:
        count: Requests that belong to some adapter.
        out_of_scope: Requests that belong to none.
        accuracy: The share whose best route is the label, whatever the threshold.
        retention: The share not sent to the fallback (coverage).
        selective_accuracy: The share of those that went to the right adapter.
        routed_accuracy: The share of all that went to the right adapter.
        out_of_scope_recall: The share of out-of-scope requests sent to the fallback.
        auroc: The probability that an in-scope request has a higher confidence than an out-of-scope one.
        calibration_error: The expected calibration error, over `BINS` bins.
        confusion: Label -> predicted adapter -> requests; "" is the fallback.
        reliability: The bins that are not empty.
        curve: Retention and out-of-scope recall by threshold.
    """

    count: int
    out_of_scope: int
    accuracy: float | None
    retention: float | None
    selective_accuracy: float | None
    routed_accuracy: float | None
    out_of_scope_recall: float | None
    auroc: float | None
    calibration_error: float | None
    confusion: Mapping[str, Mapping[str, int]]
    reliability: tuple[ReliabilityBin, ...]
    curve: tuple[OperatingPoint, ...]


def evaluate(
    decisions: Mapping[str, Sequence[RouteDecision]], out_of_scope: Sequence[RouteDecision] = ()
) -> Evaluation:
    """Evaluates decisions.

    Args:
        decisions: Label -> the decisions about its requests.
        out_of_scope: The decisions about out-of-scope requests.
    """
    pairs = [(name, one) for name, found in decisions.items() for one in found]
    correct = np.array([one.best == name for name, one in pairs], dtype=bool)
    retained = np.array([not one.fallback for _, one in pairs], dtype=bool)
    routed = np.array([one.adapter == name and not one.fallback for name, one in pairs], dtype=bool)
    inside = np.array([one.confidence for _, one in pairs])
    outside = np.array([one.confidence for one in out_of_scope])
    bins = _reliability(inside, correct)
    return Evaluation(
        count=len(pairs),
        out_of_scope=len(outside),
        accuracy=_mean(correct),
        retention=_mean(retained),
        selective_accuracy=_mean(routed[retained]),
        routed_accuracy=_mean(routed),
        out_of_scope_recall=_mean(np.array([one.fallback for one in out_of_scope], dtype=bool)),
        auroc=_auroc(inside, outside),
        calibration_error=_expected_calibration_error(bins, len(pairs)),
        confusion={
            name: dict(Counter(one.adapter or "" for one in found)) for name, found in decisions.items()
        },
        reliability=bins,
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


def _reliability(confidences: np.ndarray, correct: np.ndarray) -> tuple[ReliabilityBin, ...]:
    indices = np.minimum((confidences * BINS).astype(int), BINS - 1)
    masks = (indices == index for index in range(BINS))
    return tuple(
        ReliabilityBin(int(mask.sum()), float(confidences[mask].mean()), float(correct[mask].mean()))
        for mask in masks
        if mask.any()
    )


def _expected_calibration_error(bins: Sequence[ReliabilityBin], count: int) -> float | None:
    if not count:
        return None
    return sum(one.count * abs(one.confidence - one.accuracy) for one in bins) / count


def _curve(inside: np.ndarray, outside: np.ndarray) -> tuple[OperatingPoint, ...]:
    if not len(inside) or not len(outside):
        return ()
    thresholds = np.unique(np.quantile(np.concatenate([inside, outside]), np.linspace(0, 1, 101)))
    return tuple(
        OperatingPoint(float(t), float((inside >= t).mean()), float((outside < t).mean())) for t in thresholds
    )
