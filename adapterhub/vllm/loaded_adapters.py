"""The adapters that one server has loaded: one load at a time for each, unloading after draining, and a bound."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Container, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from adapterhub.errors import AdapterHubError

_log = logging.getLogger(__name__)


class Loader(Protocol):
    """What loads and unloads: a server's client."""

    async def load(self, name: str, folder: Path) -> None: ...

    async def unload(self, name: str) -> None: ...


class LoadedAdapters:
    """What a server has loaded, as far as is known, and which requests use it. Used from one event loop.

    Args:
        loader: Loads and unloads on the server.
        maximum: How many adapters it may have loaded; more stay only while requests use them.
        pinned: Names of adapters that are not unloaded to make room.

    Attributes:
        pinned: The same.
        loads: How many adapters it was told to load so far.
    """

    def __init__(self, loader: Loader, maximum: int, pinned: Container[str] = ()) -> None:
        self.pinned = pinned
        self.loads = 0
        self._loader = loader
        self._maximum = maximum
        self._last_used: dict[str, float] = {}  # of those that are loaded, the least recently used first
        self._users = Counter[str]()
        self._retired = set[str]()  # to be unloaded once they have no users
        self._changes = dict[str, asyncio.Task[None]]()  # the loads and unloads that run
        self._loading = set[str]()
        self._changed = set[str]()  # names of those that ran since `asking`

    def __contains__(self, name: str) -> bool:
        return name in self._last_used

    @property
    def names(self) -> tuple[str, ...]:
        """The names of those that are loaded, the least recently used first."""
        return tuple(self._last_used)

    def expects(self, name: str) -> bool:
        """Whether an adapter is loaded or being loaded."""
        return name in self._last_used or name in self._loading

    @property
    def has_room(self) -> bool:
        """Whether another one can be loaded without unloading one."""
        return self.count < self._maximum

    @property
    def count(self) -> int:
        """How many are loaded or being loaded."""
        return len(self._last_used) + len(self._loading)

    def unused_since(self, time: float) -> list[str]:
        """The names of those that no request has used since a time of the event loop's clock."""
        return [name for name, used in self._last_used.items() if used < time and not self._users[name]]

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Keeps an adapter from being unloaded."""
        self._users[name] += 1
        self._retired.discard(name)
        try:
            yield
        finally:
            self._users -= Counter([name])  # drops what has none left
            if self._last_used.pop(name, None) is not None:
                self._mark_used(name)
            self._unload_if_retired(name)

    async def load(self, name: str, folder: Path) -> None:
        """Loads an adapter unless it is loaded; all who ask at the same time wait for one load.

        Args:
            name: Its model name.
            folder: Its folder, as the server sees it.

        Raises:
            AdapterHubError: The server cannot load it, or does not answer.
        """
        if name in self._changes and name not in self._loading:
            await asyncio.wait([self._changes[name]])  # it is being unloaded
        if name in self._last_used:
            return
        if name not in self._changes:
            self._loading.add(name)
            self._start(name, self._load(name, folder))
        await asyncio.shield(self._changes[name])  # who asked may be cancelled; the others wait on

    def retire(self, name: str) -> None:
        """Unloads an adapter once no request uses it; a new request for it before then keeps it."""
        self._retired.add(name)
        self._unload_if_retired(name)

    async def unload(self, name: str) -> None:
        """As `retire`; returns once it is unloaded, if no request uses it."""
        self.retire(name)
        if name in self._changes:
            await asyncio.wait([self._changes[name]])

    def asking(self) -> None:
        """Has to be called before the server is asked what it has loaded, and then `learn`."""
        self._changed = set(self._changes)

    def learn(self, served: Iterable[str]) -> None:
        """Takes what the server says for the truth, but for what was loaded or unloaded since it was asked.

        Args:
            served: The names that it has loaded.
        """
        settled = [name for name in served if name not in self._changed]
        for name in set(self._last_used) - {*settled, *self._changed}:
            self.forget(name)
        for name in settled:
            if name not in self._last_used:
                self._mark_used(name)

    def forget(self, name: str) -> None:
        """The server has not loaded it after all."""
        self._last_used.pop(name, None)

    def _mark_used(self, name: str) -> None:
        self._last_used[name] = asyncio.get_running_loop().time()

    def _unload_if_retired(self, name: str) -> None:
        if name not in self._retired or self._users[name] or name in self._changes:
            return
        self._retired.discard(name)
        if self._last_used.pop(name, None) is not None:
            self._start(name, self._unload(name))

    def _start(self, name: str, change: Coroutine[None, None, None]) -> None:
        self._changed.add(name)
        self._changes[name] = task = asyncio.create_task(change)
        task.add_done_callback(lambda task: self._ended(name, task))

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        del self._changes[name]
        if not task.cancelled():
            task.exception()  # those who wait for it get it too, if there is anyone
        self._unload_if_retired(name)

    async def _load(self, name: str, folder: Path) -> None:
        try:
            self._retire_least_recently_used()
            await self._loader.load(name, folder)
        finally:
            self._loading.discard(name)
        self.loads += 1
        self._mark_used(name)

    async def _unload(self, name: str) -> None:
        try:
            await self._loader.unload(name)
        except AdapterHubError as error:  # if the server still has it, `learn` will say so
            _log.warning("%s may still be loaded: %s", name, error.message)

    def _retire_least_recently_used(self) -> None:
        idle = [name for name in self._last_used if not self._users[name] and name not in self.pinned]
        for name in idle[: max(self.count - self._maximum, 0)]:
            self.retire(name)

    async def aclose(self) -> None:
        """Ends the loads and unloads that run."""
        changes = list(self._changes.values())
        for change in changes:
            change.cancel()
        await asyncio.gather(*changes, return_exceptions=True)
