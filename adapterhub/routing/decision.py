"""What a router decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

RouteReason = Literal["matched", "below_threshold", "none_of_these"]


@dataclass(frozen=True)
class RouteDecision:
    """Which adapter a request goes to, and how sure that is.

    Attributes:
        adapter: The chosen adapter; None means the bare base.
        confidence: The probability, 0 to 1, that the best adapter is right.
        threshold: The confidence that the best adapter needed.
        reason: `"matched"`; `"below_threshold"`; `"none_of_these"` when the request looks most like small talk and
            general questions, which are for no adapter.
        scores: Every adapter's probability, highest first; what is missing to 1 is for none of them.
    """

    adapter: str | None
    confidence: float
    threshold: float
    reason: RouteReason
    scores: Mapping[str, float]

    @property
    def fallback(self) -> bool:
        """Whether no adapter was sure enough, so that the base answers."""
        return self.adapter is None
