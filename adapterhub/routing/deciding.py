"""One decision: the caller's choice, then rules, then the classifier with its confidence and threshold."""

from __future__ import annotations

from functools import partial

import numpy as np

from adapterhub.errors import InvalidRequestError
from adapterhub.routing.classifier.arrays import BoolArray, FloatArray
from adapterhub.routing.classifier.model import RouterModel
from adapterhub.routing.classifier.text import RequestText, segment_request
from adapterhub.routing.decision import RouteDecision, RouteReason
from adapterhub.routing.filters import EVERYTHING, RouteFilter
from adapterhub.routing.rules import first_match

PartialDecision = partial[RouteDecision]
"""A decision with the fields that depend on the request and the model alone."""


def decide(model: RouterModel, text: str, adapter: str | None, where: RouteFilter) -> RouteDecision:
    """Decides for one text; arguments as for `AdapterRouter.route`, before fallback, shadow and log."""
    request = segment_request(text)
    partly = partial(
        RouteDecision, script=request.script, router_version=model.version, has_code=request.has_code
    )
    if adapter is not None:
        return _forced(model, partly, adapter)
    if not model.routes or not request.segments:
        return _no_route(partly, "empty" if model.routes else "no_routes")
    admitted = _admitted(model, where)
    candidates = (model.routes[index] for index in model.with_rules if admitted[index])
    rule = first_match(candidates, request.segments[0])
    return _certain(partly, "rule", *rule) if rule else _classify(model, request, partly, admitted)


def _admitted(model: RouterModel, where: RouteFilter) -> BoolArray:
    """Which routes a filter admits (routes)."""
    if where == EVERYTHING:  # the usual case
        return model.ready
    if not isinstance(where, RouteFilter):
        raise InvalidRequestError(f"where= takes a RouteFilter, not a value of type {type(where).__name__}.")
    return np.array([where.admits(route) for route in model.routes], dtype=bool)


def _no_route(partly: PartialDecision, reason: RouteReason) -> RouteDecision:
    return partly(adapter=None, confidence=0.0, threshold=0.0, reason=reason, scores={}, fallback=True)


def _forced(model: RouterModel, partly: PartialDecision, adapter: str) -> RouteDecision:
    if adapter not in model.names:
        raise InvalidRequestError(f"There is no route {adapter!r}.", hint="router.adapters lists them.")
    return _certain(partly, "forced", adapter, None)


def _certain(
    partly: PartialDecision, reason: RouteReason, adapter: str, matched: str | None
) -> RouteDecision:
    return partly(
        adapter=adapter,
        confidence=1.0,
        threshold=0.0,
        reason=reason,
        scores={adapter: 1.0},
        score=1.0,
        matched=matched,
    )


def _classify(
    model: RouterModel, request: RequestText, partly: PartialDecision, admitted: BoolArray
) -> RouteDecision:
    scores, _ = model.scorer.score(request.segments, request.script)
    index = _best_admitted(scores.values, admitted)
    if not admitted[index]:
        return _no_route(partly, "filtered")
    best, score = model.routes[index], float(scores.values[index])
    curve = model.calibration.curve(request.script)
    confidence = curve.confidence(score)
    threshold = curve.threshold if best.threshold is None else best.threshold
    clear = not model.policy.margin or _lead(scores.values, admitted, index) >= model.policy.margin
    reason = _reason(confidence >= threshold, clear, scores.out_of_scope > 0)
    return partly(
        adapter=best.name if reason == "matched" else None,
        confidence=confidence,
        threshold=threshold,
        reason=reason,
        scores=dict(zip(model.names, scores.values.tolist(), strict=True)),
        score=score,
        fallback=reason != "matched",
        matched=scores.neighbour.example,
    )


def _best_admitted(scores: FloatArray, admitted: BoolArray) -> int:
    """The index of the best admitted route, or of any if none is admitted."""
    index = int(scores.argmax())
    return index if admitted[index] else int(np.where(admitted, scores, -np.inf).argmax())


def _lead(scores: FloatArray, admitted: BoolArray, index: int) -> float:
    """The margin between a route's score and the best other admitted one."""
    others = admitted.copy()
    others[index] = False
    return float(scores[index]) - float(scores[others].max(initial=-np.inf))


def _reason(above_threshold: bool, clear: bool, out_of_scope: bool) -> RouteReason:
    if not above_threshold:
        return "none_of_these" if out_of_scope else "below_threshold"
    return "matched" if clear else "ambiguous"
