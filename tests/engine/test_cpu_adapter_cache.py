"""Adapters in host memory: loaded once, bounded, and a failure concerns its own adapter only."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from adapterhub.engine.scheduling.cpu_adapter_cache import CpuAdapterCache, Deltas
from adapterhub.errors import AdapterInvalidError
from adapterhub.lora.delta import LoraDelta
from tests.engine.maker import engine_threads

BYTES = 4 * 4 * 2
"""Bytes of one of these adapters."""


class Disk:
    """Adapters by name; loading waits while it is locked."""

    def __init__(self) -> None:
        self.reads: list[str] = []
        self.bad: set[str] = set()
        self.lock = threading.Lock()

    def read(self, name: str) -> Deltas:
        with self.lock:
            self.reads.append(name)
            if name in self.bad:
                raise AdapterInvalidError("It is damaged.")
            return {name: LoraDelta(torch.zeros(1, 4), torch.zeros(4, 1))}


@pytest.fixture
def disk() -> Disk:
    return Disk()


def cache_of(disk: Disk, max_adapters: int = 3, max_bytes: int = 1000) -> CpuAdapterCache[str]:
    return CpuAdapterCache(disk.read, str, max_adapters=max_adapters, max_bytes=max_bytes)


@pytest.fixture
def cache(disk: Disk) -> Iterator[CpuAdapterCache[str]]:
    cache = cache_of(disk)
    yield cache
    cache.close()


def loaded(cache: CpuAdapterCache[str], name: str, **settings: object) -> Deltas:
    """Waits until an adapter is loaded."""
    cache.prefetch(name, **settings)  # type: ignore[arg-type]
    for _ in range(100):
        deltas = cache.get(name, **settings)  # type: ignore[arg-type]
        if deltas is not None:
            return deltas
        cache.wait_for_load(1)
    raise AssertionError(f"{name} is never loaded")


def test_an_adapter_is_loaded_once_in_the_background(disk: Disk, cache: CpuAdapterCache[str]):
    with disk.lock:
        cache.prefetch("a")
        cache.prefetch("a")
        assert cache.get("a") is None
    assert list(loaded(cache, "a")) == ["a"]
    assert loaded(cache, "a") is loaded(cache, "a")
    assert (disk.reads, cache.num_adapters, cache.bytes, len(cache.load_seconds)) == (["a"], 1, BYTES, 1)


def test_the_least_recently_used_one_is_evicted(disk: Disk, cache: CpuAdapterCache[str]):
    for name in "abcad":
        loaded(cache, name)
    assert (cache.num_adapters, cache.evictions) == (3, 1)
    for name in "acd":
        loaded(cache, name)
    assert disk.reads == list("abcd")


def test_protected_ones_are_not_evicted(disk: Disk, cache: CpuAdapterCache[str]):
    for name in "abc":
        loaded(cache, name)
    loaded(cache, "d", protected={"a"})
    assert disk.reads == list("abcd")
    loaded(cache, "a")
    loaded(cache, "b")
    assert disk.reads == list("abcdb")


def test_memory_is_bounded_but_for_one_that_is_larger_by_itself(disk: Disk):
    cache = cache_of(disk, max_adapters=10, max_bytes=2 * BYTES)
    for name in "abcde":
        loaded(cache, name)
        assert cache.bytes <= 2 * BYTES
    cache.close()
    cache = cache_of(disk, max_bytes=BYTES - 1)
    assert list(loaded(cache, "a")) == ["a"]
    cache.close()


def test_what_is_prefetched_and_never_used_is_bounded_too(disk: Disk, cache: CpuAdapterCache[str]):
    """As when the requests that it is for are aborted."""
    for number in range(20):
        cache.prefetch(str(number))
        cache.wait_for_load(1)
    assert cache.num_adapters <= 3


def test_a_damaged_one_fails_alone_and_is_tried_again(disk: Disk, cache: CpuAdapterCache[str]):
    disk.bad.add("a")
    cache.prefetch("b")
    with pytest.raises(AdapterInvalidError):
        loaded(cache, "a")
    assert list(loaded(cache, "b")) == ["b"]
    assert cache.num_adapters == 1
    disk.bad.clear()
    assert list(loaded(cache, "a")) == ["a"]


def test_what_was_removed_is_loaded_again(disk: Disk, cache: CpuAdapterCache[str]):
    loaded(cache, "a")
    cache.remove("a")
    cache.remove("b")
    assert cache.num_adapters == 0
    loaded(cache, "a")
    assert disk.reads == ["a", "a"]


def test_waiting_ends_with_the_next_load(disk: Disk, cache: CpuAdapterCache[str]):
    disk.lock.acquire()
    cache.prefetch("a")
    cache.wait_for_load(0.01)
    assert cache.get("a") is None
    threading.Timer(0.05, disk.lock.release).start()
    cache.wait_for_load(20)
    assert loaded(cache, "a")
    cache.wait_for_load(20)  # nothing is being loaded, so it returns immediately


def test_closing_ends_the_loading_thread(disk: Disk):
    others = engine_threads()
    cache = cache_of(disk)
    loaded(cache, "a")
    assert engine_threads() - others
    cache.close()
    assert engine_threads() <= others
    assert cache.num_adapters == 0
