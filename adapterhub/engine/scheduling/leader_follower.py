"""Who runs the engine's steps: one of the threads that wait for an answer, and no other.

A forward pass in a thread of its own costs more than in the caller's: two pools of worker threads compete for the same
cores. So the first thread that waits leads: it runs steps, for everybody, until its own answer is there; then one of
the others goes on. With one caller no other thread is ever involved.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Waiter:
    """Somebody who waits for news; `wake` may be called from any thread, and stays called until they look."""

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._woken = False

    def wake(self) -> None:
        """There is news, or nobody leads."""
        with self._news:
            self._woken = True
            self._news.notify()

    def wait(self) -> None:
        """Returns at the next `wake`, at once if it came before."""
        with self._news:
            self._news.wait_for(lambda: self._woken)
            self._woken = False


class LeaderFollower:
    """Lets waiting threads take turns in running steps.

    Args:
        step: Runs one step; called by one thread at a time.
        tidy: The part of a step that takes no time: does what nobody waits for, such as ending cancelled answers.
        untidy: Whether there is something to tidy.
    """

    def __init__(
        self, step: Callable[[], None], tidy: Callable[[], None], untidy: Callable[[], bool]
    ) -> None:
        self._step = step
        self._tidy, self._untidy = tidy, untidy
        # Reentrant, as a waiter's is: an abandoned stream tidies when it is collected, in any thread and at any place.
        self._lock = threading.RLock()
        self._leading = False
        self._waiting: set[Waiter] = set()

    def until(self, ready: Callable[[], bool], waiter: Waiter) -> None:
        """Returns once `ready()`: runs the steps until then, or waits for the thread that does.

        Args:
            ready: Whether the answer is there; whoever makes it true wakes the waiter.
            waiter: This thread's.
        """
        try:
            while not ready():
                if self._lead(waiter):
                    try:
                        while not ready():
                            self._step()
                    finally:
                        self._release()
                        self.tidy()
                else:
                    waiter.wait()
        finally:
            with self._lock:
                self._waiting.discard(waiter)

    def tidy(self) -> None:
        """Tidies up, unless another thread leads: its next step does, or its resigning."""
        while self._untidy() and self._lead(None):
            try:
                self._tidy()
            finally:
                self._release()

    def _lead(self, waiter: Waiter | None) -> bool:
        with self._lock:
            if self._leading:
                if waiter:
                    self._waiting.add(waiter)
                return False
            self._leading = True
            return True

    def _release(self) -> None:
        with self._lock:
            self._leading = False
            waiting = list(self._waiting)
        # All of them: whoever comes first leads, and no one is counted on who may have what it waited for.
        for waiter in waiting:
            waiter.wake()
