"""Calibration: from a score to a confidence, and the threshold, both from held-out examples.

The confidence is the probability that the best route is right: Platt scaling (1999, with his smoothed targets) of the
held-out scores. The threshold is the confidence that the target share of held-out requests reaches. Scores of one
script do not carry over to another, so each script with enough examples has a curve of its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from adapterhub.routing.classifier.arrays import BoolArray, FloatArray
from adapterhub.routing.routes import OUT_OF_SCOPE

MIN_HELD_OUT_PER_SCRIPT = 50
"""Held-out requests that a script needs for a curve of its own."""
MIN_HELD_OUT = 20
"""Held-out requests without which nothing is measured and `PRIOR` is used."""
MAX_OUT_OF_SCOPE_RATIO = 0.25
"""The maximum total weight of held-out out-of-scope requests, relative to the others: one request in five."""


class Policy(BaseModel):
    """The targets that thresholds are chosen for."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    retention: float = Field(default=0.95, gt=0, le=1)
    """The minimum share of in-scope requests that an adapter answers (coverage, in selective classification)."""
    refusal: float = Field(default=0.95, gt=0, le=1)
    """The share of held-out out-of-scope requests sent to the base at which the threshold is raised no further."""
    precision: float | None = Field(default=None, gt=0, le=1)
    """In place of `retention`: the target share of correct decisions among requests sent to an adapter."""
    margin: float = Field(default=0.0, ge=0)
    """The minimum lead of the best score over the second; below it a request is ambiguous."""


class HeldOut(NamedTuple):
    """A prediction for a held-out request; `route` is its label, `OUT_OF_SCOPE` if it belongs to no adapter."""

    text: str
    route: str
    best: str
    score: float
    script: str

    @property
    def correct(self) -> bool:
        """Whether the best route is the label."""
        return self.best == self.route


class CalibrationCurve(BaseModel):
    """A logistic curve from score to confidence, and the threshold on the confidence."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    slope: float = Field(gt=0)
    offset: float
    threshold: float = Field(ge=0, le=1)

    def confidence(self, score: float) -> float:
        """The probability that the best route is right, given its score."""
        return 1 / (1 + math.exp(-max(-500.0, min(500.0, self.slope * score + self.offset))))


PRIOR = CalibrationCurve(slope=3.0, offset=0.5, threshold=0.5)
"""The curve if there are too few held-out requests to measure one."""


class Calibration(BaseModel):
    """A curve for each script with enough examples, and one for all others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    general: CalibrationCurve = PRIOR
    by_script: Mapping[str, CalibrationCurve] = {}

    @classmethod
    def fit(cls, held_out: Sequence[HeldOut], policy: Policy) -> Calibration:
        """Curves from held-out requests."""
        counts = Counter(one.script for one in held_out if one.route != OUT_OF_SCOPE)
        by_script = {
            script: _curve([one for one in held_out if one.script == script], policy)
            for script in sorted(counts)
            if counts[script] >= MIN_HELD_OUT_PER_SCRIPT
        }
        return cls(general=_curve(held_out, policy), by_script=by_script)

    def curve(self, script: str) -> CalibrationCurve:
        """The curve for a script."""
        return self.by_script.get(script, self.general)


def _curve(held_out: Sequence[HeldOut], policy: Policy) -> CalibrationCurve:
    scores = np.array([one.score for one in held_out])
    correct = np.array([one.correct for one in held_out], dtype=bool)
    in_scope = np.array([one.route != OUT_OF_SCOPE for one in held_out], dtype=bool)
    if in_scope.sum() < MIN_HELD_OUT:
        return PRIOR
    slope, offset = _platt(scores, correct, _weights(in_scope))
    curve = CalibrationCurve(slope=slope, offset=offset, threshold=0)
    target = _target_score(scores[in_scope], correct[in_scope], policy)
    if policy.precision is None and (~in_scope).sum() >= MIN_HELD_OUT:
        target = min(target, float(np.quantile(scores[~in_scope], policy.refusal)))
    return curve.model_copy(update={"threshold": curve.confidence(target)})


def _target_score(scores: FloatArray, correct: BoolArray, policy: Policy) -> float:
    """The score threshold that meets the policy's target."""
    if policy.precision is None:
        return float(np.quantile(scores, 1 - policy.retention))
    order = np.argsort(-scores, kind="stable")
    precise = np.cumsum(correct[order]) / np.arange(1, len(order) + 1) >= policy.precision
    return float(scores[order][np.flatnonzero(precise)[-1]]) if precise.any() else float(scores.max())


def _weights(in_scope: BoolArray) -> FloatArray:
    """The sample weight of each held-out request (n)."""
    own, others = int(in_scope.sum()), int((~in_scope).sum())
    return np.where(in_scope, 1.0, min(1.0, MAX_OUT_OF_SCOPE_RATIO * own / max(1, others)))


def _platt(scores: FloatArray, correct: BoolArray, weights: FloatArray) -> tuple[float, float]:
    """Slope and offset of Platt scaling; each sample stands for both outcomes, weighted by its smoothed target."""
    from sklearn.linear_model import LogisticRegression

    hits, misses = float(weights[correct].sum()), float(weights[~correct].sum())
    target = np.where(correct, (hits + 1) / (hits + 2), 1 / (misses + 2))
    curve = LogisticRegression(C=1e4, max_iter=1000).fit(
        np.concatenate([scores, scores])[:, None],
        np.repeat([1, 0], len(scores)),
        sample_weight=np.concatenate([target * weights, (1 - target) * weights]),
    )
    slope = float(curve.coef_[0, 0])
    # A slope that is not positive means that the scores carry no information: then the curve is flat.
    return (
        (slope, float(curve.intercept_[0])) if slope > 1e-3 else (1e-3, math.log((hits + 1) / (misses + 1)))
    )
