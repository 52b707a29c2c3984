"""Leader-follower stepping: the engine's steps are run by one of the threads that wait for output.

A forward pass in a thread of its own costs more than in the thread of the caller: two pools of worker threads compete
for the same cores. So the first thread that waits becomes the leader. It runs steps, for all sequences, until its own
output is complete; then one of the followers leads. With one caller no other thread is involved.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Waiter:
    """A thread that waits. Any thread may call `wake`; a wake-up before `wait` is not lost."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._woken = False

    def wake(self) -> None:
        """Ends the current or the next `wait`."""
        with self._condition:
            self._woken = True
            self._condition.notify()

    def wait(self) -> None:
        """Blocks until `wake` has been called since the last `wait`."""
        with self._condition:
            self._condition.wait_for(lambda: self._woken)
            self._woken = False


class LeaderFollower:
    """Lets one thread at a time run steps. Any thread may call its methods.

    Args:
        step: Runs one step; called by the leader.
        reap: The part of a step that takes no time, such as freeing aborted sequences; called by the leader.
        has_pending: Whether `reap` has something to do; called by any thread.
    """

    def __init__(
        self, step: Callable[[], None], reap: Callable[[], None], has_pending: Callable[[], bool]
    ) -> None:
        self._step = step
        self._reap, self._has_pending = reap, has_pending
        # Reentrant: the garbage collector may close an abandoned stream, which calls `reap`, in a thread that holds it.
        self._lock = threading.RLock()
        self._leading = False
        self._followers: set[Waiter] = set()

    def run_until(self, ready: Callable[[], bool], waiter: Waiter) -> None:
        """Returns once `ready()`: leads until then, or waits while another thread leads.

        Args:
            ready: Whether this thread has what it waits for; the thread that makes it true wakes the waiter.
            waiter: This thread's.
        """
        try:
            while not ready():
                if self._try_lead(waiter):
                    try:
                        while not ready():
                            self._step()
                    finally:
                        self._resign()
                        self.reap()
                else:
                    waiter.wait()
        finally:
            with self._lock:
                self._followers.discard(waiter)

    def reap(self) -> None:
        """Reaps now, unless another thread leads: that one does it in its next step, or when it resigns."""
        while self._has_pending() and self._try_lead(None):
            try:
                self._reap()
            finally:
                self._resign()

    def _try_lead(self, waiter: Waiter | None) -> bool:
        with self._lock:
            if self._leading:
                if waiter:
                    self._followers.add(waiter)
                return False
            self._leading = True
            return True

    def _resign(self) -> None:
        with self._lock:
            self._leading = False
            followers = list(self._followers)
        # Wake all of them: any single one may have its output already and would not lead.
        for waiter in followers:
            waiter.wake()
