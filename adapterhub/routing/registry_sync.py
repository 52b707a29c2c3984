"""A router that keeps step with a registry."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adapterhub.errors import RoutingError
from adapterhub.registry.cards import AdapterCard
from adapterhub.registry.store import AdapterRegistry
from adapterhub.routing.router import AdapterRouter

SAVED = ".router.skops"
"""A registry's saved router; hidden files are no part of a registry."""
LOOK_AGAIN = 5.0
"""Seconds after which the cards are read again even if the registry does not tell of a change: people edit files."""
_log = logging.getLogger(__name__)


def saved_router(registry: AdapterRegistry) -> Path:
    """Where a registry's router is kept."""
    return registry.root / SAVED


class SyncedRouter:
    """Gives the router for a registry's present state.

    The first call loads the saved router or fits one; later calls take in what has changed. Reading the cards of a
    thousand adapters takes a tenth of a second, so it happens when the registry tells of a change, and now and then.

    Args:
        registry: The adapters.
        admits: Which of them may be routed to.
        options: For `AdapterRouter.from_cards`, whose `negatives` and `policy` make a saved router useless.
    """

    def __init__(
        self, registry: AdapterRegistry, admits: Callable[[AdapterCard], bool], options: Mapping[str, Any]
    ) -> None:
        self._registry = registry
        self._admits = admits
        self._options = dict(options)
        self._router: AdapterRouter | None = None
        self._seen: object = None
        self._looked = 0.0
        self._lock = threading.Lock()

    @property
    def is_fitted(self) -> bool:
        """Whether `current` has a router already, and takes no longer than a look at the registry."""
        return self._router is not None

    def current(self) -> AdapterRouter:
        """The router, in step with the registry.

        Raises:
            RoutingError: No adapter says anything to route by.
        """
        with self._lock:
            stamp, now = self._registry.stamp(), time.monotonic()
            if self._router is None or stamp != self._seen or now - self._looked > LOOK_AGAIN:
                cards = [card for card in self._registry.list() if self._admits(card)]
                if self._router is None:
                    self._router = self._first(cards)
                changed = self._router.sync(cards)
                if changed:
                    _log.info("The router has taken in %d changed adapters", len(changed))
                self._seen, self._looked = stamp, now
            if not self._router.adapters:
                raise RoutingError(
                    "No adapter for this base says anything to route by.",
                    hint="Put a few requests into routing.examples of each card.",
                )
            return self._router

    def _first(self, cards: list[AdapterCard]) -> AdapterRouter:
        path = saved_router(self._registry)
        if path.is_file() and not self._options.keys() & {"negatives", "policy", "encoder"}:
            try:
                return AdapterRouter.load(path, **self._options)
            except RoutingError as error:
                _log.warning("The saved router is not used: %s", error)
        return AdapterRouter.from_cards(cards, **self._options)
