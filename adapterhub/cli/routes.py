"""The router of a registry, and warnings about its routes, for several commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.cli import output
from adapterhub.errors import ConfigError

if TYPE_CHECKING:
    from adapterhub.base import BaseFingerprint
    from adapterhub.registry import AdapterRegistry
    from adapterhub.routing import AdapterRouter, Finding

_MAX_SHOWN_CHARS = 80


def router_of(adapters: AdapterRegistry, **options: Any) -> AdapterRouter:
    """The router that a hub on this registry has; warns if the saved one is not used as it is.

    Args:
        adapters: The registry.
        options: As for the router's constructor.
    """
    from adapterhub.routing import current_router

    return current_router(adapters, served_base(adapters), notify=output.warn, **options)


def served_base(adapters: AdapterRegistry) -> BaseFingerprint | None:
    """The base that a hub would load, read from its folder without loading it; None if it is not on this machine."""
    from adapterhub.base import BaseFingerprint, locate_base
    from adapterhub.config import HubConfig
    from adapterhub.hub import chosen_base

    config = HubConfig.load()
    try:
        name, revision = chosen_base(config, adapters)
        return BaseFingerprint.of(locate_base(name, revision=revision, local_files_only=True))
    except ConfigError as error:
        bases = {card.base.fingerprint for card in adapters.list()} - {None}
        if len(bases) > 1:
            output.warn(
                f"Adapters for all bases are candidates, since the base cannot be read: {error.message}"
            )
        return None


def warn_of_routes(adapters: AdapterRegistry, names: Sequence[str]) -> None:
    """Warns of the problems of some adapters' routes that show without training."""
    from adapterhub.routing import findings_before_fit, routes_from_cards

    found = findings_before_fit(routes_from_cards(adapters.list()))
    warn([one for one in found if set(one.adapters) & set(names)])


def warn(findings: Sequence[Finding]) -> None:
    """Warns of findings."""
    for one in findings:
        output.warn(describe(one))


def describe(finding: Finding) -> str:
    """A finding as a line."""
    shown = "; ".join(f'"{_shortened(text)}"' for text in finding.examples)
    return f"{finding.message} For example: {shown}" if shown else finding.message


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[: _MAX_SHOWN_CHARS - 1]}…"
