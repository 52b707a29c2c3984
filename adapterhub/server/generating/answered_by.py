"""Who answers a request, and why: for the answer's `model`, its headers and its `adapterhub` field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self

from adapterhub.routing.decision import RouteDecision


class _Answer(Protocol):
    """A `Generation`, or an `AsyncGenerationStream` that has started."""

    @property
    def adapter(self) -> str | None: ...

    @property
    def version(self) -> int | None: ...

    @property
    def route(self) -> RouteDecision | None: ...


@dataclass(frozen=True)
class AnsweredBy:
    """Who answers.

    Attributes:
        adapter: The adapter's name, or a blend's reference; None for the bare base.
        version: Its version; None for a blend or the base.
        route: The router's decision, if the model was `auto`.
    """

    adapter: str | None
    version: int | None
    route: RouteDecision | None

    @classmethod
    def of(cls, answer: _Answer) -> Self:
        """Who gives an answer."""
        return cls(answer.adapter, answer.version, answer.route)

    def model(self, base_model: str) -> str:
        """The `model` of the answer.

        Args:
            base_model: The id of the bare base.
        """
        return self.adapter or base_model

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the answer."""
        headers = {"x-adapterhub-adapter": self.adapter or "base"}
        if self.version:
            headers["x-adapterhub-version"] = str(self.version)
        if self.route:
            headers["x-adapterhub-route"] = self.route.reason
            headers["x-adapterhub-confidence"] = f"{self.route.confidence:.3f}"
        return headers

    @property
    def field(self) -> dict[str, Any]:
        """The `adapterhub` field of the answer, or of a stream's last chunk."""
        return {"adapter": self.adapter, "version": self.version, "route": _route(self.route)}


def _route(route: RouteDecision | None) -> dict[str, Any] | None:
    # Without the example or rule that matched: it may be of an adapter that does not exist for the caller.
    if route is None:
        return None
    return {
        "reason": route.reason,
        "confidence": round(route.confidence, 4),
        "threshold": round(route.threshold, 4),
    }
