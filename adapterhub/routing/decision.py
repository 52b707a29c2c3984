"""What a router decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

RouteReason = Literal[
    "matched",
    "rule",
    "forced",
    "below_threshold",
    "none_of_these",
    "ambiguous",
    "filtered",
    "empty",
    "no_routes",
    "shadow",
]


@dataclass(frozen=True)
class RouteDecision:
    """Which adapter a request goes to, how sure that is, and why.

    Attributes:
        adapter: The chosen adapter; None means the bare base.
        confidence: The probability, 0 to 1, that the best route is right, as measured on held-out examples.
        threshold: The confidence that the best route needed.
        reason: `"matched"`: the classifier is sure enough. `"rule"`: a phrase or pattern applied. `"forced"`: the
            caller named it. The others mean the fallback: `"below_threshold"`; `"none_of_these"`, when the request is
            not sure and looks like small talk and general questions; `"ambiguous"`, when two routes are too close;
            `"filtered"`, when the filter left no route; `"empty"`, when there is nothing to read; `"no_routes"`; and
            `"shadow"`, when the router only watches.
        scores: Every route's score, by name; only their order and `confidence` mean anything.
        score: The score of the best route.
        fallback: Whether the fallback answers: the base, unless the router was given another.
        matched: The rule that applied, or the example that the request is nearest to.
        language: The script of most of the request's letters, such as `"latin"` or `"cyrillic"`.
        router_version: What the router had learned from when it decided.
        has_code: Whether fenced code in the request was passed over.
    """

    adapter: str | None
    confidence: float
    threshold: float
    reason: RouteReason
    scores: Mapping[str, float]
    score: float = 0.0
    fallback: bool = False
    matched: str | None = None
    language: str = "none"
    router_version: str = ""
    has_code: bool = False

    @property
    def best(self) -> str | None:
        """The route with the highest score, chosen or not."""
        return max(self.scores, key=self.scores.__getitem__, default=None)

    def ranked(self, most: int | None = None) -> list[tuple[str, float]]:
        """Routes with their scores, the highest first.

        Args:
            most: How many of them; all if None.
        """
        return sorted(self.scores.items(), key=lambda one: -one[1])[:most]
