"""The router of a registry, and what is wrong with its routes, as several commands need them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adapterhub.cli import output
from adapterhub.errors import RoutingError

if TYPE_CHECKING:
    from adapterhub.registry import AdapterRegistry
    from adapterhub.routing.analysis.health import Finding
    from adapterhub.routing.router import AdapterRouter

_LONGEST_SHOWN = 80


def current_router(adapters: AdapterRegistry, **options: Any) -> AdapterRouter:
    """The registry's saved router; where the cards say something else by now, one fitted on them.

    Args:
        adapters: The registry.
        options: As for the router's constructor.
    """
    from adapterhub.routing.registry_sync import saved_router
    from adapterhub.routing.router import AdapterRouter

    path = saved_router(adapters)
    if not path.exists():
        return AdapterRouter.from_registry(adapters, **options)
    try:
        saved = AdapterRouter.load(path, **options)
    except RoutingError as error:
        output.warn(f"The saved router is not used: {error}")
        return AdapterRouter.from_registry(adapters, **options)
    changed = saved.stale(adapters)
    if not changed:
        return saved
    names = f"{', '.join(changed[:5])}{', ...' if len(changed) > 5 else ''}"
    output.note(f"The saved router does not know the present cards ({names}): fitting anew.")
    return AdapterRouter.from_registry(adapters, policy=saved.model.policy, **options)


def warn_of_routes(adapters: AdapterRegistry, names: Sequence[str]) -> None:
    """Warns of what is wrong at first sight with the routes of some adapters; trains nothing."""
    from adapterhub.routing.analysis.health import findings_before_fit
    from adapterhub.routing.routes import from_cards

    try:
        found = findings_before_fit(from_cards(adapters.list()))
    except RoutingError as error:
        output.warn(f"The router cannot learn from the cards: {error}")
        return
    warn([one for one in found if set(one.adapters) & set(names)])


def warn(findings: Sequence[Finding]) -> None:
    """Warns of findings."""
    for one in findings:
        output.warn(told(one))


def told(finding: Finding) -> str:
    """A finding as a line."""
    shown = "; ".join(f'"{_short(text)}"' for text in finding.examples)
    return f"{finding.message} For example: {shown}" if shown else finding.message


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 1]}…"
