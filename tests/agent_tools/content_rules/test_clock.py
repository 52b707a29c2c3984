"""The time of a validation."""

from __future__ import annotations

import gc
import threading
import time

import pytest

from adapterhub.agent_tools.content_rules.clock import Clock, OutOfTimeError


def spend(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_time_that_is_used_up_ends_it():
    with Clock(0.01) as clock:
        clock.check()
        spend(0.02)
        with pytest.raises(OutOfTimeError):
            clock.check()


def test_a_collection_of_garbage_does_not_count():
    heap = [[] for _ in range(1_000_000)]  # so that one takes long enough to be told
    with Clock(10) as clock:
        before, left = time.thread_time(), clock.left
        gc.collect()
        taken, counted = time.thread_time() - before, left - clock.left
    assert heap
    assert counted < taken / 4


def test_a_collection_of_what_is_new_counts():
    gc.disable()
    try:
        heap = [[] for _ in range(1_000_000)]
        with Clock(10) as clock:
            before, left = time.thread_time(), clock.left
            gc.collect(1)
            taken, counted = time.thread_time() - before, left - clock.left
    finally:
        gc.enable()
    assert heap
    assert counted > taken * 3 / 4


def test_a_collection_on_another_thread_adds_nothing():
    heap = [[] for _ in range(1_000_000)]
    with Clock(10) as clock:
        left = clock.left
        other = threading.Thread(target=gc.collect)
        other.start()
        other.join()
        assert heap
        assert clock.left <= left


def test_nothing_is_left_behind():
    before = list(gc.callbacks)
    with pytest.raises(KeyError), Clock(1):
        raise KeyError
    assert gc.callbacks == before
