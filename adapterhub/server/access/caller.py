"""Who sends a request, and which adapters exist for them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from adapterhub.errors import AdapterNotFoundError
from adapterhub.routing import RouteFilter
from adapterhub.server.access.keys import ApiKey
from adapterhub.server.access.levels import Level


@dataclass(frozen=True)
class Caller:
    """The sender of a request.

    Attributes:
        name: The name of the key; `anonymous` without one.
        level: The highest level of paths that they may call.
        adapters: The names of the adapters that exist for them; None for all.
        key: The key; None without one.
    """

    name: str
    level: Level
    adapters: frozenset[str] | None = None
    key: ApiKey | None = field(default=None, repr=False)

    @classmethod
    def with_key(cls, key: ApiKey) -> Caller:
        """The holder of a key."""
        level = Level.ADMIN if key.is_admin else Level.OPERATOR if key.adapters is None else Level.INFERENCE
        return cls(key.name, level, key.adapters, key)

    @property
    def is_admin(self) -> bool:
        """Whether they may change the registry, and see all of it."""
        return self.level is Level.ADMIN

    def may_use(self, adapter: str) -> bool:
        """Whether an adapter of this name exists for them."""
        return self.adapters is None or adapter in self.adapters

    def check(self, adapters: Iterable[str]) -> None:
        """Returns if all adapters of these names exist for them.

        Raises:
            AdapterNotFoundError: One does not; the message is that of an adapter that does not exist.
        """
        for name in adapters:
            if not self.may_use(name):
                raise no_model(name)

    @property
    def route_filter(self) -> RouteFilter:
        """What the router may choose for them."""
        return RouteFilter(allow=self.adapters)


NOBODY = Caller("nobody", Level.OPEN, frozenset())
"""A caller for whom no adapter exists."""


def no_model(reference: str) -> AdapterNotFoundError:
    """The error for a model that does not exist for a caller; it names no other."""
    return AdapterNotFoundError(
        f"The model {reference[:200]!r} does not exist.", hint="GET /v1/models lists those that do."
    )
