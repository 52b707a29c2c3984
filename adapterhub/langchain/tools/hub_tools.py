"""Tools over a hub: list its adapters, and route a request without answering it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from langchain_core.tools import BaseTool, tool
from pydantic import Field

from adapterhub.errors import AdapterHubError
from adapterhub.langchain.tools.args_schema import Arguments
from adapterhub.langchain.tools.content_and_artifact import ContentAndArtifact, describe_error

if TYPE_CHECKING:
    from adapterhub.hub import AdapterHub
    from adapterhub.registry import AdapterCard
    from adapterhub.routing.decision import RouteDecision

_MAX_DESCRIPTION = 300


class ListArguments(Arguments):
    """Which adapters to list."""

    contains: str = Field("", max_length=200)
    """Text in name, description or tags."""
    limit: int = Field(50, ge=1, le=1000)
    """At most."""


class RouteArguments(Arguments):
    """The request to route."""

    text: str = Field(min_length=1, max_length=100_000)
    """The request."""


def create_list_adapters_tool(hub: AdapterHub) -> BaseTool:
    """Creates the tool `list_adapters` of a hub."""

    @tool(args_schema=ListArguments, response_format="content_and_artifact")
    def list_adapters(contains: str = "", limit: int = 50) -> ContentAndArtifact:
        """List the adapters by name, with what each is for."""
        try:
            cards = [card for card in hub.registry.list() if _matches(card, contains.casefold())]
        except AdapterHubError as error:
            return describe_error(error)
        adapters = [_describe_card(card) for card in cards[:limit]]
        lines = [f"{adapter['name']}: {adapter['description'] or 'no description'}" for adapter in adapters]
        lines += [f"and {len(cards) - limit} more"] if len(cards) > limit else []
        return "\n".join(lines) or "There are no such adapters.", {"adapters": adapters, "total": len(cards)}

    return list_adapters


def create_route_request_tool(hub: AdapterHub) -> BaseTool:
    """Creates the tool `route_request` of a hub."""

    @tool(args_schema=RouteArguments, response_format="content_and_artifact")
    def route_request(text: str) -> ContentAndArtifact:
        """Say which adapter would answer a request, how sure that is, and why."""
        try:
            decision = hub.route(text)
        except AdapterHubError as error:
            return describe_error(error)
        return (
            f"{decision.adapter or 'base'} (confidence {decision.confidence:.2f}, {decision.reason})",
            _describe_decision(decision),
        )

    return route_request


def _matches(card: AdapterCard, text: str) -> bool:
    return any(text in part.casefold() for part in (card.name, card.description, *card.tags))


def _describe_card(card: AdapterCard) -> dict[str, Any]:
    return {
        "name": card.name,
        "version": card.version,
        "description": card.description[:_MAX_DESCRIPTION],
        "tags": list(card.tags),
        "languages": list(card.language),
        "status": card.status,
    }


def _describe_decision(decision: RouteDecision) -> dict[str, Any]:
    return {
        "adapter": decision.adapter,
        "confidence": decision.confidence,
        "reason": decision.reason,
        "scores": dict(decision.ranked()),
    }
