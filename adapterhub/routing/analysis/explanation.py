"""Why a router decided as it did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from adapterhub.routing.classifier.features import buckets, grams
from adapterhub.routing.classifier.model import RouterModel
from adapterhub.routing.classifier.text import read
from adapterhub.routing.decision import RouteDecision


class Evidence(NamedTuple):
    """One n-gram of a request: what it adds to the best route's score, and to the second's."""

    gram: str
    best: float
    second: float


@dataclass(frozen=True)
class Explanation:
    """A decision and what made it.

    Attributes:
        decision: The decision.
        piece: The part of the request that was decided by: all of it, a sentence, or a span of one.
        evidence: The n-grams that count most for the best route against the second, both ways, strongest first. A
            letter n-gram begins or ends with a space where its word does.
        unknown: The share of the request's n-grams that no example has.
    """

    decision: RouteDecision
    piece: str
    evidence: tuple[Evidence, ...]
    unknown: float


def explain(model: RouterModel, text: str, decision: RouteDecision, most: int = 12) -> Explanation:
    """Explains a decision that a model made about a text.

    Args:
        model: What decided.
        text: The request.
        decision: What came out.
        most: How many n-grams to show.
    """
    reading = read(text)
    ranked = [model.names.index(name) for name, _ in decision.ranked() if name in model.names]
    if not reading.pieces or decision.reason in ("rule", "forced") or not ranked:
        return Explanation(decision, reading.pieces[0] if reading.pieces else "", (), 0.0)
    _, piece = model.scorer.score(reading.pieces, reading.script)
    vector, named = model.scorer.weighting.vector(buckets(piece)), grams(piece)
    best, second = (model.scorer.contributions(vector, place) for place in (ranked * 2)[:2])
    found = [
        Evidence(named[bucket], *adds)
        for bucket, *adds in zip(vector.buckets.tolist(), best.tolist(), second.tolist(), strict=True)
    ]
    found.sort(key=lambda one: (-abs(one.best - one.second), one.gram))
    known = np.any([part.columns[vector.buckets] >= 0 for part in model.scorer.parts], axis=0)
    return Explanation(decision, piece, tuple(found[:most]), 1 - float(known.mean()))
