"""Which label an adapter's figures have: bounded in number, and gone with the adapter."""

from __future__ import annotations

import threading

from adapterhub.registry import AdapterRegistry

BASE = "base"
OTHER = "other"


class AdapterLabels:
    """Labels by adapter: the names of up to `max_adapters` registered adapters, `base`, and `other` for all else.

    A name keeps its label until it is removed, so that no figure moves from one series to another. Versions and
    aliases have the label of their name; blends, whose number is without bound, are `other`. Any thread may call any
    method.

    Args:
        registry: The adapters.
        max_adapters: How many have a label of their own; the first by name, then those that come.
    """

    def __init__(self, registry: AdapterRegistry, max_adapters: int) -> None:
        self._registry = registry
        self._max_adapters = max_adapters
        self._registered: frozenset[str] = frozenset()
        self._named: dict[str, None] = {}  # in order
        # Reference of a version -> its adapter's name, which means that version.
        self._bare: dict[str, str] = {}
        self._stamp: tuple[int, ...] | None = None
        self._lock = threading.Lock()

    def refresh(self) -> tuple[str, ...]:
        """Follows the registry; reads it only if it has changed.

        Returns:
            All labels, whether anything was counted under them or not.
        """
        with self._lock:
            stamp = self._registry.stamp()
            if stamp != self._stamp:
                self._read()
                self._stamp = stamp
            return (BASE, *self._named, OTHER)

    def label(self, reference: str) -> str | None:
        """The label of a reference, such as `json@1`, as of the last `refresh`.

        Args:
            reference: To an adapter or a blend, or `base`.

        Returns:
            The label; None for an adapter that has been removed, whose figures are dropped.
        """
        if reference == BASE:
            return BASE
        if ":" in reference:  # only the parts of a blend have weights
            return OTHER
        name = reference.partition("@")[0]
        if name in self._named:
            return name
        return OTHER if name in self._registered else None

    def client_name(self, reference: str) -> str:
        """A reference as clients write it: without the versions that bare names mean, also in a blend."""
        parts = (part.partition(":") for part in reference.split("+"))
        return "+".join(self._bare.get(name, name) + colon + weight for name, colon, weight in parts)

    def _read(self) -> None:
        self._bare = {card.ref: card.name for card in self._registry.list()}
        self._registered = frozenset(self._bare.values())
        self._named = {name: None for name in self._named if name in self._registered}
        free = self._max_adapters - len(self._named)
        new = sorted(self._registered - self._named.keys() - {OTHER})
        self._named |= dict.fromkeys(new[: max(free, 0)])
