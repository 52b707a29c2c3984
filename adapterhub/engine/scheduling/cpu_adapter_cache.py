"""Adapters in host memory, read from disk in the background as soon as a request for them is queued."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from adapterhub.lora.delta import LoraDelta

Deltas = Mapping[str, LoraDelta]
K = TypeVar("K")
REMEMBERED_LOADS = 1000


class CpuAdapterCache(Generic[K]):
    """The adapters between disk and slots.

    Args:
        load: Reads an adapter.
        key: Identifies it.
        max_adapters: How many stay; the least recently used one goes.
        max_bytes: How much memory they may take together. One that is larger than that by itself still loads.
    """

    def __init__(
        self, load: Callable[[K], Deltas], key: Callable[[K], str], *, max_adapters: int, max_bytes: int
    ) -> None:
        self._load, self._key = load, key
        self._max_adapters, self._max_bytes = max_adapters, max_bytes
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="adapterhub-load")
        self._entries: OrderedDict[str, Future[Deltas]] = OrderedDict()  # least recently used first
        self._news = threading.Condition()
        self.load_seconds: deque[float] = deque(maxlen=REMEMBERED_LOADS)
        self.evictions = 0

    @property
    def adapters(self) -> int:
        """How many are here or on their way."""
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """What those that are here take."""
        return sum(_size(future.result()) for future in list(self._entries.values()) if _is_loaded(future))

    def prefetch(self, adapter: K, *, keep: Collection[str] = ()) -> None:
        """Begins to read an adapter, unless it is here or on its way; `keep` is as in `take`."""
        key = self._key(adapter)
        if key not in self._entries:
            self._entries[key] = self._reader.submit(self._timed, adapter)
            self._evict({key, *keep})  # what was read ahead and never taken goes too

    def take(self, adapter: K, *, keep: Collection[str] = ()) -> Deltas | None:
        """An adapter's changes; None unless it has been read.

        Args:
            adapter: Which one.
            keep: Keys of others that must not make room for it.

        Raises:
            AdapterHubError: It could not be read; the next `prefetch` tries again.
        """
        key = self._key(adapter)
        future = self._entries.get(key)
        if future is None or not future.done():
            return None
        if future.exception():
            del self._entries[key]
        deltas = future.result()
        self._entries.move_to_end(key)
        self._evict({key, *keep})
        return deltas

    def forget(self, key: str) -> None:
        """Drops an adapter."""
        self._entries.pop(key, None)

    def wait(self, seconds: float) -> None:
        """Returns when an adapter has been read, or after some time."""
        with self._news:
            if all(future.done() for future in self._entries.values()):
                return
            self._news.wait(seconds)

    def close(self) -> None:
        """Ends the reading thread and forgets all adapters."""
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._entries.clear()

    def _timed(self, adapter: K) -> Deltas:
        started = time.perf_counter()
        try:
            return self._load(adapter)
        finally:
            self.load_seconds.append(time.perf_counter() - started)
            with self._news:
                self._news.notify_all()

    def _evict(self, keep: Collection[str]) -> None:
        for key in [key for key, future in self._entries.items() if key not in keep and future.done()]:
            if len(self._entries) <= self._max_adapters and self.bytes <= self._max_bytes:
                return
            del self._entries[key]
            self.evictions += 1


def _is_loaded(future: Future[Deltas]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _size(deltas: Deltas) -> int:
    return sum(delta.bytes for delta in deltas.values())
