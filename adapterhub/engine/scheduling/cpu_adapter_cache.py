"""Adapters in host memory, loaded from disk in the background as soon as a request for them waits."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from adapterhub.lora.delta import ModuleDelta

Deltas = Mapping[str, ModuleDelta]
K = TypeVar("K")
MAX_LOAD_TIMES = 1000


class CpuAdapterCache(Generic[K]):
    """The tier between disk and LoRA slots; the least recently used adapter is evicted.

    Not thread-safe: the thread that steps calls its methods. Adapters are loaded in one thread of the cache's own. Any
    thread may read `num_adapters`, `loaded`, `bytes`, `load_seconds` and `evictions`.

    Args:
        load: Loads an adapter; called in the loading thread.
        key: The identity of an adapter.
        max_adapters: Maximum number of adapters.
        max_bytes: Maximum bytes of all adapters. One that is larger than that by itself is still loaded.
    """

    def __init__(
        self, load: Callable[[K], Deltas], key: Callable[[K], str], *, max_adapters: int, max_bytes: int
    ) -> None:
        self._load, self._key = load, key
        self._max_adapters, self._max_bytes = max_adapters, max_bytes
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="adapterhub-load")
        self._entries: OrderedDict[str, Future[Deltas]] = OrderedDict()  # least recently used first
        self._loaded = threading.Condition()
        self.load_seconds: deque[float] = deque(maxlen=MAX_LOAD_TIMES)
        self.evictions = 0

    @property
    def num_adapters(self) -> int:
        """Number of adapters that are loaded or being loaded."""
        return len(self._entries)

    @property
    def loaded(self) -> frozenset[str]:
        """The keys of the loaded adapters."""
        return frozenset(key for key, future in list(self._entries.items()) if _is_loaded(future))

    @property
    def bytes(self) -> int:
        """Bytes of the loaded adapters."""
        return sum(_size(future.result()) for future in list(self._entries.values()) if _is_loaded(future))

    def prefetch(self, adapter: K, *, protected: Collection[str] = ()) -> None:
        """Starts to load an adapter unless it is loaded or being loaded; `protected` is as in `get`."""
        key = self._key(adapter)
        if key not in self._entries:
            self._entries[key] = self._submit(adapter)
            # Here too: `get` is never called for an adapter whose requests were all aborted.
            self._evict({key, *protected})

    def get(self, adapter: K, *, protected: Collection[str] = ()) -> Deltas | None:
        """The weights of an adapter; None until they are loaded.

        Args:
            adapter: The adapter.
            protected: Keys of adapters that must not be evicted for it.

        Raises:
            AdapterHubError: It could not be loaded; the next `prefetch` tries again.
        """
        key = self._key(adapter)
        future = self._entries.get(key)
        if future is None or not future.done():
            return None
        if future.exception():
            del self._entries[key]
        deltas = future.result()
        self._entries.move_to_end(key)
        self._evict({key, *protected})
        return deltas

    def remove(self, key: str) -> None:
        """Removes an adapter, if it is there."""
        self._entries.pop(key, None)

    def wait_for_load(self, timeout: float) -> None:
        """Blocks until an adapter has been loaded, at most `timeout` seconds; returns if none is being loaded."""
        with self._loaded:
            if all(future.done() for future in self._entries.values()):
                return
            self._loaded.wait(timeout)

    def close(self) -> None:
        """Ends the loading thread and removes all adapters."""
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._entries.clear()

    def _submit(self, adapter: K) -> Future[Deltas]:
        try:
            return self._executor.submit(self._timed_load, adapter)
        except RuntimeError as error:
            # No thread can be started: `get` raises it for those who need the adapter.
            failed: Future[Deltas] = Future()
            failed.set_exception(error)
            return failed

    def _timed_load(self, adapter: K) -> Deltas:
        started = time.perf_counter()
        try:
            return self._load(adapter)
        finally:
            self.load_seconds.append(time.perf_counter() - started)
            with self._loaded:
                self._loaded.notify_all()

    def _evict(self, protected: Collection[str]) -> None:
        for key in [key for key, future in self._entries.items() if key not in protected and future.done()]:
            if len(self._entries) <= self._max_adapters and self.bytes <= self._max_bytes:
                return
            del self._entries[key]
            self.evictions += 1


def _is_loaded(future: Future[Deltas]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _size(deltas: Deltas) -> int:
    return sum(delta.bytes for delta in deltas.values())
