"""From a score to a confidence and a threshold, measured on examples that were held out.

The confidence is the probability that the best route is right: a logistic curve through held-out scores (Platt 1999,
with his softened targets). The threshold is the confidence that the wanted share of held-out requests reaches. Scores
of one script say little about another, so each script with enough examples has a curve of its own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from adapterhub.routing.classifier.features import BoolArray, FloatArray
from adapterhub.routing.classifier.head import NONE

ENOUGH = 50
"""Held-out requests from which on a script has a curve of its own."""
FEW = 20
"""Held-out requests below which there is no measuring, and `PRIOR` holds."""
NONE_SHARE = 0.25
"""What held-out requests for no adapter count at most, all together, beside the others: one request in five."""


class Policy(BaseModel):
    """How sure the router has to be."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    retention: float = Field(default=0.95, gt=0, le=1)
    """The share of requests for some adapter that shall not be sent to the base, at least."""
    refusal: float = Field(default=0.95, gt=0, le=1)
    """Once this share of the held-out requests for no adapter is sent to the base, no more of the others is."""
    precision: float | None = Field(default=None, gt=0, le=1)
    """In place of `retention`: the share of the requests sent to an adapter that shall be right."""
    margin: float = Field(default=0.0, ge=0)
    """The best score must lead the second by this much, or the request is ambiguous; 0 asks for no lead."""


class HeldOut(NamedTuple):
    """What a router that never saw a request made of it; `route` is `NONE` if it belongs to no adapter."""

    text: str
    route: str
    best: str
    score: float
    script: str

    @property
    def right(self) -> bool:
        """Whether the best route is the one that the request belongs to."""
        return self.best == self.route


class Curve(BaseModel):
    """Score to confidence, and the confidence to reach."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    slope: float = Field(gt=0)
    offset: float
    threshold: float = Field(ge=0, le=1)

    def confidence(self, score: float) -> float:
        """The probability that the best route is right, given its score."""
        return 1 / (1 + math.exp(-max(-500.0, min(500.0, self.slope * score + self.offset))))


PRIOR = Curve(slope=3.0, offset=0.5, threshold=0.5)
"""The curve where nothing could be measured."""


class Calibration(BaseModel):
    """A curve for each script, and one for all others."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    general: Curve = PRIOR
    by_script: Mapping[str, Curve] = {}

    @classmethod
    def fit(cls, held_out: Sequence[HeldOut], policy: Policy) -> Calibration:
        """Curves from held-out requests."""
        inside = Counter(one.script for one in held_out if one.route != NONE)
        own = {
            script: _curve([one for one in held_out if one.script == script], policy)
            for script in sorted(inside)
            if inside[script] >= ENOUGH
        }
        return cls(general=_curve(held_out, policy), by_script=own)

    def curve(self, script: str) -> Curve:
        """The curve for a script."""
        return self.by_script.get(script, self.general)


def _curve(held_out: Sequence[HeldOut], policy: Policy) -> Curve:
    scores = np.array([one.score for one in held_out])
    right = np.array([one.right for one in held_out], dtype=bool)
    inside = np.array([one.route != NONE for one in held_out], dtype=bool)
    if inside.sum() < FEW:
        return PRIOR
    slope, offset = _platt(scores, right, _weights(inside))
    curve = Curve(slope=slope, offset=offset, threshold=0)
    wanted = _wanted_score(scores[inside], right[inside], policy)
    if policy.precision is None and (~inside).sum() >= FEW:
        wanted = min(wanted, float(np.quantile(scores[~inside], policy.refusal)))
    return curve.model_copy(update={"threshold": curve.confidence(wanted)})


def _wanted_score(scores: FloatArray, right: BoolArray, policy: Policy) -> float:
    """The score to reach for the policy's target."""
    if policy.precision is None:
        return float(np.quantile(scores, 1 - policy.retention))
    order = np.argsort(-scores, kind="stable")
    precise = np.cumsum(right[order]) / np.arange(1, len(order) + 1) >= policy.precision
    return float(scores[order][np.flatnonzero(precise)[-1]]) if precise.any() else float(scores.max())


def _weights(inside: BoolArray) -> FloatArray:
    """How much each held-out request counts (n)."""
    own, others = int(inside.sum()), int((~inside).sum())
    return np.where(inside, 1.0, min(1.0, NONE_SHARE * own / max(1, others)))


def _platt(scores: FloatArray, right: BoolArray, weights: FloatArray) -> tuple[float, float]:
    """Slope and offset of the curve; each point counts for both outcomes, by the softened share of its own."""
    from sklearn.linear_model import LogisticRegression

    hits, misses = float(weights[right].sum()), float(weights[~right].sum())
    share = np.where(right, (hits + 1) / (hits + 2), 1 / (misses + 2))
    curve = LogisticRegression(C=1e4, max_iter=1000).fit(
        np.concatenate([scores, scores])[:, None],
        np.repeat([1, 0], len(scores)),
        sample_weight=np.concatenate([share * weights, (1 - share) * weights]),
    )
    slope = float(curve.coef_[0, 0])
    # A slope that is not positive says that these scores tell nothing; a flat curve says the same.
    return (
        (slope, float(curve.intercept_[0])) if slope > 1e-3 else (1e-3, math.log((hits + 1) / (misses + 1)))
    )
