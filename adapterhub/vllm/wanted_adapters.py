"""Which adapters servers should have loaded ahead of requests, and which they should not have any more."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Set
from dataclasses import dataclass

from adapterhub.errors import CapacityError
from adapterhub.fleet import home
from adapterhub.lora.request import StoredLoraRequest
from adapterhub.registry.store import AdapterRegistry
from adapterhub.vllm.adapter_names import AdapterName, model_name
from adapterhub.vllm.blends import MaterialisedBlends
from adapterhub.vllm.replica import Replica

IDLE_SECONDS = 60.0
"""How long a version stays loaded after its last request once no alias and no bare name points to it."""


@dataclass(frozen=True)
class RegisteredNames:
    """The model names of a registry's adapters.

    Attributes:
        all: Those of all versions that are ready.
        current: Those of versions that an alias needs, also as a part of a split or a shadow, or a bare name points to.
    """

    all: Set[str] = frozenset()
    current: Set[str] = frozenset()


class RegisteredAdapters:
    """Reads a registry's names, again only after it has changed, and those of its blends, which need no registering.

    Args:
        registry: The registry.
        blends: Its blends; those that nobody uses any more are removed first.
    """

    def __init__(self, registry: AdapterRegistry, blends: MaterialisedBlends) -> None:
        self._registry, self._blends = registry, blends
        self._last: tuple[tuple[int, ...], RegisteredNames] | None = (
            None  # the registry's stamp, and its names
        )

    async def names(self) -> RegisteredNames:
        """The names now.

        Raises:
            AdapterHubError: The registry or the folder of blends cannot be read.
        """
        registered = await asyncio.to_thread(self._read)
        blends = {model_name(blend) for blend in await self._blends.reap()}
        return RegisteredNames(registered.all | blends, registered.current | blends)

    def _read(self) -> RegisteredNames:
        stamp, last = self._registry.stamp(), self._last
        if last and last[0] == stamp:
            return last[1]
        # Not what `_last` holds in the end: another thread, which began earlier, may put older names there.
        names = _names_of(self._registry)
        self._last = stamp, names
        return names


def _names_of(registry: AdapterRegistry) -> RegisteredNames:
    every, current = set[str](), set[str]()
    for adapter in registry.names():
        needed = {version for alias in registry.aliases(adapter).values() for version in alias.versions}
        # Not what the bare name points to: where that version is damaged, the others are still served.
        ready = [card for card in registry.versions(adapter) if card.status == "ready"]
        needed |= {card.version for card in ready[-1:]}
        for card in ready:
            name = str(AdapterName.of(card.ref, card.digest))
            every.add(name)
            if card.version in needed:
                current.add(name)
    return RegisteredNames(every, current)


class WantedAdapters:
    """What is to be loaded ahead of requests: pinned adapters everywhere, preloaded ones on one server at least.

    Attributes:
        pinned: Pinned adapters by model name.
        preloaded: Preloaded adapters by model name.
    """

    def __init__(self) -> None:
        self.pinned: dict[str, StoredLoraRequest] = {}
        self.preloaded: dict[str, StoredLoraRequest] = {}

    @property
    def names(self) -> set[str]:
        """The model names of both."""
        return {*self.pinned, *self.preloaded}

    def pin(self, name: str, adapter: StoredLoraRequest, maximum: int) -> None:
        """Pins an adapter.

        Raises:
            CapacityError: There would be no room for another adapter.
        """
        if len({*self.pinned, name}) >= maximum:
            raise CapacityError(
                f"With {name} pinned, a server would have room for no adapter that is not.",
                hint="Unpin another adapter, or raise max_adapters.",
            )
        self.pinned[name] = adapter

    def drop(self, name: str) -> None:
        """The adapter is not wanted ahead of requests any more."""
        self.pinned.pop(name, None)
        self.preloaded.pop(name, None)

    def missing(self, replica: Replica, ready: Collection[Replica]) -> dict[str, StoredLoraRequest]:
        """What a server should load now; nothing while it takes no requests.

        Args:
            replica: The server.
            ready: All servers that take requests.
        """
        if replica not in ready:
            return {}
        return {
            name: adapter
            for name, adapter in {**self.preloaded, **self.pinned}.items()
            if name not in replica.adapters and (name in self.pinned or self._belongs(name, replica, ready))
        }

    def _belongs(self, name: str, replica: Replica, ready: Collection[Replica]) -> bool:
        """Whether a preloaded adapter is loaded nowhere, and this is where its requests will go."""
        if not replica.adapters.has_room or any(name in other.adapters for other in ready):
            return False
        return replica.client.url == home([other.client.url for other in ready], name)


def obsolete(replica: Replica, registered: RegisteredNames) -> set[str]:
    """What a server should not have any more: removed and disabled versions, and idle ones that were replaced."""
    adapters = replica.adapters
    idle = adapters.unused_since(asyncio.get_running_loop().time() - IDLE_SECONDS)
    replaced = {name for name in idle if name not in registered.current and name not in adapters.pinned}
    return replaced | (set(adapters.names) - registered.all)
