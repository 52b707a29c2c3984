"""The deadline of a validation: it is processor time of the validating thread."""

from __future__ import annotations

import hashlib
import threading
import time

import pytest
import regex

from adapterhub._deadline import Deadline, DeadlineExceededError
from adapterhub._patterns import SafePattern, first_match


def spend(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_it_passes_once_the_time_is_used_up():
    deadline = Deadline(0.01)
    deadline.check()
    spend(0.02)
    assert deadline.remaining < 0
    with pytest.raises(DeadlineExceededError):
        deadline.check()


def test_waiting_does_not_count():
    deadline = Deadline(0.02)
    time.sleep(0.1)
    deadline.check()


def test_other_threads_do_not_count():
    deadline = Deadline(0.02)
    other = threading.Thread(target=spend, args=(0.1,))
    other.start()
    other.join()
    deadline.check()


def test_it_limits_an_endless_iterable():
    with pytest.raises(DeadlineExceededError):
        for _ in Deadline(0.01).limit(iter(int, 1)):
            pass


def test_a_catastrophic_match_ends_at_the_deadline():
    before = time.thread_time()
    with pytest.raises(DeadlineExceededError):
        SafePattern("(a+)+$").search("a" * 30_000 + "!", Deadline(0.1))
    assert time.thread_time() - before < 0.3


def test_a_match_is_found_while_other_threads_use_the_process_time():
    stop = threading.Event()

    def burn() -> None:
        block = b"x" * 10_000_000
        while not stop.is_set():
            hashlib.sha256(block).digest()  # releases the GIL

    others = [threading.Thread(target=burn) for _ in range(3)]
    for other in others:
        other.start()
    try:
        pattern, text = regex.compile("x{3}$"), "xx " * 1_000_000 + "xxx"  # takes about 0.05 s
        assert first_match(pattern, text, Deadline(1)) is not None
    finally:
        stop.set()
        for other in others:
            other.join()
