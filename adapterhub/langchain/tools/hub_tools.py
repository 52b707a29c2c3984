"""The tools with which an agent looks at the hub: which adapters there are, and which one would answer a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.tools import BaseTool, tool
from pydantic import Field

from adapterhub.errors import AdapterHubError
from adapterhub.langchain.tools.arguments import Arguments

if TYPE_CHECKING:
    from adapterhub.hub import AdapterHub
    from adapterhub.registry import AdapterCard
    from adapterhub.routing.decision import RouteDecision

Answer = tuple[str, dict[str, Any]]
_LONGEST_DESCRIPTION = 300


class ListArguments(Arguments):
    """Which adapters to list."""

    contains: str = Field("", max_length=200)
    """Only those with this text in their name, description or tags."""
    limit: int = Field(50, ge=1, le=1000)
    """Most adapters to list."""


class RouteArguments(Arguments):
    """What to route."""

    text: str = Field(min_length=1, max_length=100_000)
    """The request."""


def adapters_tool(hub: AdapterHub) -> BaseTool:
    """The tool `list_adapters` of a hub."""

    @tool(args_schema=ListArguments, response_format="content_and_artifact")
    def list_adapters(contains: str = "", limit: int = 50) -> Answer:
        """List the adapters of this hub by name, with what each is for."""
        try:
            cards = [card for card in hub.registry.list() if _matches(card, contains.casefold())]
        except AdapterHubError as error:
            return _failure(error)
        adapters = [_described(card) for card in cards[:limit]]
        lines = [f"{adapter['name']}: {adapter['description'] or 'no description'}" for adapter in adapters]
        lines += [f"and {len(cards) - limit} more"] if len(cards) > limit else []
        return "\n".join(lines) or "There are no such adapters.", {"adapters": adapters, "total": len(cards)}

    return list_adapters


def routing_tool(hub: AdapterHub) -> BaseTool:
    """The tool `route_request` of a hub."""

    @tool(args_schema=RouteArguments, response_format="content_and_artifact")
    def route_request(text: str) -> Answer:
        """Say which adapter of this hub would answer a request, how sure that is, and why."""
        try:
            decision = hub.route(text)
        except AdapterHubError as error:
            return _failure(error)
        return (
            f"{decision.adapter or 'base'} (confidence {decision.confidence:.2f}, {decision.reason})",
            _decided(decision),
        )

    return route_request


def _matches(card: AdapterCard, text: str) -> bool:
    return any(text in part.casefold() for part in (card.name, card.description, *card.tags))


def _described(card: AdapterCard) -> dict[str, Any]:
    return {
        "name": card.name,
        "version": card.version,
        "description": card.description[:_LONGEST_DESCRIPTION],
        "tags": list(card.tags),
        "languages": list(card.language),
        "status": card.status,
    }


def _decided(decision: RouteDecision) -> dict[str, Any]:
    return {
        "adapter": decision.adapter,
        "confidence": decision.confidence,
        "reason": decision.reason,
        "scores": dict(decision.ranked()),
    }


def _failure(error: AdapterHubError) -> Answer:
    return f"failed: {error}", {"error": error.code, "message": error.message, "hint": error.hint}
