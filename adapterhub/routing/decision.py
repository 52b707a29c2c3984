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
    """Which adapter a request goes to, with what confidence, and why.

    Attributes:
        adapter: The chosen adapter; None means the bare base.
        confidence: The calibrated probability, 0 to 1, that the best route is right.
        threshold: The confidence that the best route needed.
        reason: `"matched"`: the confidence reaches the threshold. `"rule"`: a phrase or pattern matched. `"forced"`:
            the caller named the adapter. The other reasons mean the fallback: `"below_threshold"`;
            `"none_of_these"`, below the threshold and classified as out of scope; `"ambiguous"`, when two routes are
            closer than the policy's margin; `"filtered"`, when the filter left no route; `"empty"`, for a request
            without text; `"no_routes"`; and `"shadow"`, when the router is in shadow mode.
        scores: Every route's score, by name. Only their order has a meaning; `confidence` is the calibrated value.
        score: The score of the best route.
        fallback: Whether the fallback answers: the base, unless the router has another fallback.
        matched: The rule that matched, or the nearest example.
        script: The script of most of the request's letters, such as `"latin"` or `"cyrillic"`.
        router_version: A digest of the router's training data.
        has_code: Whether fenced code was left out of the request.
    """

    adapter: str | None
    confidence: float
    threshold: float
    reason: RouteReason
    scores: Mapping[str, float]
    score: float = 0.0
    fallback: bool = False
    matched: str | None = None
    script: str = "none"
    router_version: str = ""
    has_code: bool = False

    @property
    def best(self) -> str | None:
        """The route with the highest score, chosen or not."""
        return max(self.scores, key=self.scores.__getitem__, default=None)

    def ranked(self, limit: int | None = None) -> list[tuple[str, float]]:
        """Routes with their scores, the highest first.

        Args:
            limit: How many of them; all if None.
        """
        return sorted(self.scores.items(), key=lambda item: -item[1])[:limit]
