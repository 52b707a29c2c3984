"""Why the router would choose as it does, as far as a caller may know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from adapterhub.errors import RoutingError
from adapterhub.hub import AdapterHub
from adapterhub.routing import Route, RouteDecision, RouteFilter
from adapterhub.server.access.caller import Caller
from adapterhub.server.protocol.registry import (
    RouteEvidence,
    RouteExplanation,
    RouterFinding,
    RouterState,
    RouteScore,
)


def explained(
    hub: AdapterHub, prompt: str | Sequence[Mapping[str, Any]], caller: Caller, where: RouteFilter
) -> RouteExplanation:
    """The router's decision with its reasons.

    Args:
        hub: Its router is asked; the first call fits it, which takes seconds.
        prompt: A text, or messages.
        caller: Adapters that do not exist for them, and disabled ones, are neither chosen nor named.
        where: What the router may choose for them.
    """
    try:
        router = hub.router
    except RoutingError:
        return RouteExplanation(
            adapter=None, confidence=0.0, threshold=0.0, reason="no_routes", fallback=True
        )
    explanation = router.explain(prompt, where=where)
    decision = explanation.decision
    visible = {
        route.name: route for route in router.model.routes if route.is_ready and where.admits_name(route.name)
    }
    # Evidence is about the two best routes, whoever may use them.
    evidence = explanation.evidence if caller.adapters is None else ()
    return RouteExplanation(
        adapter=decision.adapter,
        confidence=decision.confidence,
        threshold=decision.threshold,
        reason=decision.reason,
        fallback=decision.fallback,
        matched=_visible_match(decision, visible.values()),
        scores=[
            RouteScore(adapter=name, score=score) for name, score in decision.ranked() if name in visible
        ],
        evidence=[RouteEvidence(**entry._asdict()) for entry in evidence],
        segment=explanation.segment,
        unknown=explanation.unknown,
        router_version=decision.router_version,
    )


def _visible_match(decision: RouteDecision, visible: Iterable[Route]) -> str | None:
    """The rule or nearest example, if it is of a visible route."""
    known = (
        text for route in visible for text in (*route.examples, *route.about, *route.phrases, *route.patterns)
    )
    return next((text for text in known if text == decision.matched), None)


def router_state(hub: AdapterHub) -> RouterState:
    """What the router chooses from, and what to improve on the cards."""
    try:
        router = hub.router
    except RoutingError as error:
        return RouterState(version="", adapters=[], findings=[], message=str(error))
    findings = [RouterFinding(**asdict(finding)) for finding in router.health()]
    return RouterState(version=router.version, adapters=list(router.adapters), findings=findings)
