"""One decision: the caller's own choice, then rules, then the classifier with its confidence and threshold."""

from __future__ import annotations

from functools import partial

import numpy as np

from adapterhub.errors import RoutingError
from adapterhub.routing.classifier.features import BoolArray, FloatArray
from adapterhub.routing.classifier.model import RouterModel
from adapterhub.routing.classifier.text import Reading, read
from adapterhub.routing.decision import RouteDecision, RouteReason
from adapterhub.routing.filters import RouteFilter
from adapterhub.routing.rules import first_match

Told = partial[RouteDecision]
"""A decision that has everything but what was decided."""


def decide(model: RouterModel, text: str, adapter: str | None, where: RouteFilter) -> RouteDecision:
    """Decides for one text; arguments as for `AdapterRouter.route`, before fallback, shadow and log."""
    reading = read(text)
    told = partial(
        RouteDecision, language=reading.script, router_version=model.version, has_code=reading.has_code
    )
    if adapter is not None:
        return _forced(model, told, adapter)
    if not model.routes or not reading.pieces:
        return _nobody(told, "empty" if model.routes else "no_routes")
    admitted = model.admitted(where)
    rule = first_match((model.routes[place] for place in model.ruled if admitted[place]), reading.pieces[0])
    return _certain(told, "rule", *rule) if rule else _classified(model, reading, told, admitted)


def _nobody(told: Told, reason: RouteReason) -> RouteDecision:
    return told(adapter=None, confidence=0.0, threshold=0.0, reason=reason, scores={}, fallback=True)


def _forced(model: RouterModel, told: Told, adapter: str) -> RouteDecision:
    if adapter not in model.names:
        raise RoutingError(f"There is no route {adapter!r}.", hint="router.adapters lists them.")
    return _certain(told, "forced", adapter, None)


def _certain(told: Told, reason: RouteReason, adapter: str, matched: str | None) -> RouteDecision:
    return told(
        adapter=adapter,
        confidence=1.0,
        threshold=0.0,
        reason=reason,
        scores={adapter: 1.0},
        score=1.0,
        matched=matched,
    )


def _classified(model: RouterModel, reading: Reading, told: Told, admitted: BoolArray) -> RouteDecision:
    scored, _ = model.scorer.score(reading.pieces, reading.script)
    place = _first(scored.scores, admitted)
    if not admitted[place]:
        return _nobody(told, "filtered")
    best, score = model.routes[place], float(scored.scores[place])
    curve = model.calibration.curve(reading.script)
    confidence = curve.confidence(score)
    threshold = curve.threshold if best.threshold is None else best.threshold
    clear = not model.policy.margin or _lead(scored.scores, admitted, place) >= model.policy.margin
    reason = _reason(confidence >= threshold, clear, scored.none > 0)
    return told(
        adapter=best.name if reason == "matched" else None,
        confidence=confidence,
        threshold=threshold,
        reason=reason,
        scores=dict(zip(model.names, scored.scores.tolist(), strict=True)),
        score=score,
        fallback=reason != "matched",
        matched=scored.nearest.example,
    )


def _first(scores: FloatArray, admitted: BoolArray) -> int:
    """The place of the best admitted route, or of some other if none is."""
    place = int(scores.argmax())
    return place if admitted[place] else int(np.where(admitted, scores, -np.inf).argmax())


def _lead(scores: FloatArray, admitted: BoolArray, place: int) -> float:
    """How far a route is ahead of the best other one that is admitted."""
    others = admitted.copy()
    others[place] = False
    return float(scores[place]) - float(scores[others].max(initial=-np.inf))


def _reason(sure: bool, clear: bool, for_none: bool) -> RouteReason:
    if not sure:
        return "none_of_these" if for_none else "below_threshold"
    return "matched" if clear else "ambiguous"
