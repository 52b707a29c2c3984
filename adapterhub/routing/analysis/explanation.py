"""The reasons of a decision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from adapterhub.routing.classifier.features import hash_ngrams, ngrams_by_bucket
from adapterhub.routing.classifier.model import RouterModel
from adapterhub.routing.classifier.text import segment_request
from adapterhub.routing.decision import RouteDecision


class Evidence(NamedTuple):
    """One n-gram of a request, and its contribution to the scores of the best and the second route."""

    ngram: str
    best: float
    second: float


@dataclass(frozen=True)
class Explanation:
    """A decision and its reasons.

    Attributes:
        decision: The decision.
        segment: The segment with the highest score: the whole request, a sentence, or a window of one.
        evidence: The n-grams with the largest difference between the best and the second route, strongest first. A
            character n-gram begins or ends with a space where its word does.
        unknown: The share of the segment's n-grams without training data (out-of-vocabulary rate).
    """

    decision: RouteDecision
    segment: str
    evidence: tuple[Evidence, ...]
    unknown: float


def explain(model: RouterModel, text: str, decision: RouteDecision, limit: int = 12) -> Explanation:
    """Explains a decision that a model made about a text.

    Args:
        model: The model that decided.
        text: The request.
        decision: Its decision.
        limit: The maximum number of n-grams.
    """
    request = segment_request(text)
    ranked = [model.names.index(name) for name, _ in decision.ranked() if name in model.names]
    if not request.segments or decision.reason in ("rule", "forced") or not ranked:
        return Explanation(decision, request.segments[0] if request.segments else "", (), 0.0)
    _, segment = model.scorer.score(request.segments, request.script)
    vector, ngrams = model.scorer.weighting.vector(hash_ngrams(segment)), ngrams_by_bucket(segment)
    best, second = (model.scorer.contributions(vector, index) for index in (ranked * 2)[:2])
    found = [
        Evidence(ngrams[bucket], *adds)
        for bucket, *adds in zip(vector.indices.tolist(), best.tolist(), second.tolist(), strict=True)
    ]
    found.sort(key=lambda one: (-abs(one.best - one.second), one.ngram))
    known = np.any([head.columns[vector.indices] >= 0 for head in model.scorer.heads], axis=0)
    return Explanation(decision, segment, tuple(found[:limit]), 1 - float(known.mean()))
