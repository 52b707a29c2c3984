"""Adapters in host memory: read once, bounded, and a failure is its own adapter's."""

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
"""What one of these adapters takes."""


class Disk:
    """Adapters by name; reading waits while it is locked."""

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


def taken(cache: CpuAdapterCache[str], name: str, **settings: object) -> Deltas:
    """Waits until it has been read."""
    cache.prefetch(name, **settings)  # type: ignore[arg-type]
    for _ in range(100):
        deltas = cache.take(name, **settings)  # type: ignore[arg-type]
        if deltas is not None:
            return deltas
        cache.wait(1)
    raise AssertionError(f"{name} never comes")


def test_it_is_read_in_the_background_and_once(disk: Disk, cache: CpuAdapterCache[str]):
    with disk.lock:
        cache.prefetch("a")
        cache.prefetch("a")
        assert cache.take("a") is None
    assert list(taken(cache, "a")) == ["a"]
    assert taken(cache, "a") is taken(cache, "a")
    assert (disk.reads, cache.adapters, cache.bytes, len(cache.load_seconds)) == (["a"], 1, BYTES, 1)


def test_the_least_recently_used_one_goes(disk: Disk, cache: CpuAdapterCache[str]):
    for name in "abcad":
        taken(cache, name)
    assert (cache.adapters, cache.evictions) == (3, 1)
    for name in "acd":
        taken(cache, name)
    assert disk.reads == list("abcd")


def test_those_to_be_kept_do_not_go(disk: Disk, cache: CpuAdapterCache[str]):
    for name in "abc":
        taken(cache, name)
    taken(cache, "d", keep={"a"})
    assert disk.reads == list("abcd")
    taken(cache, "a")
    taken(cache, "b")
    assert disk.reads == list("abcdb")


def test_memory_is_bounded_but_for_one_that_is_larger_by_itself(disk: Disk):
    cache = cache_of(disk, max_adapters=10, max_bytes=2 * BYTES)
    for name in "abcde":
        taken(cache, name)
        assert cache.bytes <= 2 * BYTES
    cache.close()
    cache = cache_of(disk, max_bytes=BYTES - 1)
    assert list(taken(cache, "a")) == ["a"]
    cache.close()


def test_what_is_read_ahead_and_never_taken_is_bounded_too(disk: Disk, cache: CpuAdapterCache[str]):
    """As when the requests that it is read for are cancelled."""
    for number in range(20):
        cache.prefetch(str(number))
        cache.wait(1)
    assert cache.adapters <= 3


def test_a_damaged_one_fails_alone_and_is_tried_again(disk: Disk, cache: CpuAdapterCache[str]):
    disk.bad.add("a")
    cache.prefetch("b")
    with pytest.raises(AdapterInvalidError):
        taken(cache, "a")
    assert list(taken(cache, "b")) == ["b"]
    assert cache.adapters == 1
    disk.bad.clear()
    assert list(taken(cache, "a")) == ["a"]


def test_what_is_forgotten_is_read_anew(disk: Disk, cache: CpuAdapterCache[str]):
    taken(cache, "a")
    cache.forget("a")
    cache.forget("b")
    assert cache.adapters == 0
    taken(cache, "a")
    assert disk.reads == ["a", "a"]


def test_waiting_ends_with_the_next_one_that_is_read(disk: Disk, cache: CpuAdapterCache[str]):
    disk.lock.acquire()
    cache.prefetch("a")
    cache.wait(0.01)
    assert cache.take("a") is None
    threading.Timer(0.05, disk.lock.release).start()
    cache.wait(20)
    assert taken(cache, "a")
    cache.wait(20)  # nothing is on its way, so it returns at once


def test_closing_ends_the_reading_thread(disk: Disk):
    others = engine_threads()
    cache = cache_of(disk)
    taken(cache, "a")
    assert engine_threads() - others
    cache.close()
    assert engine_threads() <= others
    assert cache.adapters == 0
