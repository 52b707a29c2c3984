"""Which routes are candidates for a request."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.routing.routes import Route


@dataclass(frozen=True)
class RouteFilter:
    """Restricts the routes that may be chosen; disabled adapters never are.

    Attributes:
        allow: Only these names; None for all.
        deny: Never these names.
        tags: Only routes with all of these tags.
        base: Only routes for this base, and routes whose base is unknown.
    """

    allow: frozenset[str] | None = None
    deny: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    base: BaseFingerprint | None = None

    @classmethod
    def of(
        cls,
        allow: Iterable[str] | None = None,
        deny: Iterable[str] = (),
        tags: Iterable[str] = (),
        base: BaseFingerprint | None = None,
    ) -> RouteFilter:
        """A filter from any iterables of names."""
        return cls(None if allow is None else frozenset(allow), frozenset(deny), frozenset(tags), base)

    def admits(self, route: Route) -> bool:
        """Whether a route may be chosen."""
        return (
            route.is_ready
            and self.admits_name(route.name)
            and self.tags <= set(route.tags)
            and fits_base(route.base, self.base)
        )

    def admits_name(self, name: str) -> bool:
        """Whether an adapter of this name may be chosen, as far as the name decides."""
        return (self.allow is None or name in self.allow) and name not in self.deny


EVERYTHING = RouteFilter()


def fits_base(trained_on: BaseFingerprint | None, base: BaseFingerprint | None) -> bool:
    """Whether an adapter's base and the served base are the same; an unknown one fits."""
    return trained_on is None or base is None or not trained_on.mismatch(base)
