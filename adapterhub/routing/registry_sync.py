"""The router of a registry: the one loader of saved routers, for hubs and for commands."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.errors import AdapterHubError, RoutingError
from adapterhub.registry.cards import AdapterCard
from adapterhub.registry.store import AdapterRegistry
from adapterhub.routing.filters import fits_base
from adapterhub.routing.router import AdapterRouter

ROUTER_FILE = ".router.skops"
"""A registry's saved router; hidden files are no part of a registry."""
MAX_CARDS_AGE = 5.0
"""Seconds after which the cards are read again even if the registry reports no change: people edit files."""
_log = logging.getLogger(__name__)


def saved_router(registry: AdapterRegistry) -> Path:
    """The path of a registry's saved router."""
    return registry.root / ROUTER_FILE


def candidates(registry: AdapterRegistry, base: BaseFingerprint | None) -> list[AdapterCard]:
    """The cards of the adapters that may be routed to on a base; of all adapters if it is None."""
    return [card for card in registry.list() if fits_base(card.base.fingerprint, base)]


def current_router(
    registry: AdapterRegistry,
    base: BaseFingerprint | None = None,
    *,
    notify: Callable[[str], None] = _log.warning,
    **options: Any,
) -> AdapterRouter:
    """The router that a hub on this base has once its background fit has ended; for programs that decide once.

    Args:
        registry: The adapters.
        base: As for `SyncedRouter`.
        notify: As for `SyncedRouter`.
        **options: As for `AdapterRouter.from_cards`.

    Raises:
        RoutingError: No adapter for this base has text to route by.
    """
    router = SyncedRouter(registry, base, options, notify=notify).current()
    router.settle()
    router.refit()
    return router


class SyncedRouter:
    """The router for a registry's present state; any thread may ask for it.

    The first call loads the saved router or fits one; later calls apply what has changed on the cards. Reading the
    cards of a thousand adapters takes 0.3 s, so they are read when the registry reports a change, and after
    `MAX_CARDS_AGE` in a thread.

    Args:
        registry: The adapters.
        base: The served base; adapters for another one are no candidates. None if it is unknown.
        options: For `AdapterRouter.from_cards`; with `negatives`, `policy` or `encoder` a saved router is not used.
        notify: Receives a sentence if the saved router cannot be used as it is.
    """

    def __init__(
        self,
        registry: AdapterRegistry,
        base: BaseFingerprint | None = None,
        options: Mapping[str, Any] | None = None,
        *,
        notify: Callable[[str], None] = _log.warning,
    ) -> None:
        self._registry = registry
        self._base = base
        self._options = dict(options or {})
        self._notify = notify
        self._router: AdapterRouter | None = None
        self._stamp: object = None
        self._read_at = 0.0
        self._reading: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def is_fitted(self) -> bool:
        """Whether `current` has a router already, and only has to compare the cards."""
        return self._router is not None

    def current(self) -> AdapterRouter:
        """The router, in step with the registry.

        Raises:
            RoutingError: No adapter for this base has text to route by.
        """
        with self._lock:
            stamp, now = self._registry.stamp(), time.monotonic()
            if self._router is None or stamp != self._stamp:
                self._router = self._synced(candidates(self._registry, self._base))
                self._stamp, self._read_at = stamp, now
            elif now - self._read_at > MAX_CARDS_AGE:
                self._read_later()
                self._read_at = now
            if not self._router.adapters:
                raise RoutingError(
                    "No adapter for this base has text to route by.",
                    hint="Put a few requests into routing.examples of each card.",
                )
            return self._router

    def _read_later(self) -> None:
        """Looks for cards that were edited by hand, which no stamp tells, without holding up the request."""
        if self._reading is None or not self._reading.is_alive():
            self._reading = threading.Thread(target=self._read_again, name="adapterhub-cards", daemon=True)
            self._reading.start()

    def _read_again(self) -> None:
        try:
            stamp, cards = self._registry.stamp(), candidates(self._registry, self._base)
            with self._lock:
                if stamp == self._stamp:  # else a request has read newer ones
                    self._synced(cards)
        except AdapterHubError as error:
            _log.warning("The router could not follow the cards: %s", error)

    def _synced(self, cards: list[AdapterCard]) -> AdapterRouter:
        if self._router is not None:
            changed = self._router.sync(cards)
            if changed:
                _log.info("The router was updated for %d changed adapters", len(changed))
            return self._router
        saved = self._saved()
        if saved is None:
            return AdapterRouter.from_cards(cards, **self._options)
        changed = saved.sync(cards)
        if changed:
            names = f"{', '.join(changed[:5])}{', ...' if len(changed) > 5 else ''}"
            self._notify(f"The saved router is older than some cards ({names}): it is updated.")
        return saved

    def _saved(self) -> AdapterRouter | None:
        path = saved_router(self._registry)
        if not path.is_file() or self._options.keys() & {"negatives", "policy", "encoder"}:
            return None
        try:
            return AdapterRouter.load(path, **self._options)
        except RoutingError as error:
            self._notify(f"The saved router is not used: {error}")
            return None
