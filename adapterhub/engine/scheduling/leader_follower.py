"""Leader-follower stepping: the engine's steps are run by one of the threads that wait for output.

A forward pass in a thread of its own costs more than in the thread of the caller: two pools of worker threads compete
for the same cores. So the first thread that waits becomes the leader. It runs steps, for all sequences, until its own
output is complete; then one of the followers leads. With one caller no other thread is involved.

Ctrl-C in the leading thread waits for the end of its step: what the step changes belongs to all callers.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable

from adapterhub.engine.scheduling.deferred_signals import DeferredSignals


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


class Lead:
    """Which thread leads. Any thread may call its methods."""

    def __init__(self) -> None:
        # Reentrant: the garbage collector may close an abandoned stream, which calls `reap`, in a thread that holds it.
        self._lock = threading.RLock()
        self._taken = False
        self._followers: set[Waiter] = set()
        self._process_id = os.getpid()
        self._retired_by: int | None = None

    @property
    def has_retired(self) -> bool:
        """Whether `retire` was called."""
        return self._retired_by is not None

    @property
    def is_retired(self) -> bool:
        """Whether this thread may not lead any more; the one that retired the lead, and ends the process, may."""
        return self._retired_by not in (None, threading.get_ident())

    def take(self, waiter: Waiter | None) -> bool:
        """Takes the lead, if no thread has it; otherwise the waiter is woken when it is free."""
        with self._lock:
            if self._taken or self.is_retired:
                if waiter:
                    self._followers.add(waiter)
                return False
            self._taken = True
            return True

    def resign(self) -> None:
        """Gives the lead up."""
        with self._lock:
            self._taken = False
            followers = list(self._followers)
        # Wake all of them: any single one may have its output already and would not lead.
        for waiter in followers:
            waiter.wake()

    def forget(self, waiter: Waiter) -> None:
        """Does not wake this thread any more."""
        with self._lock:
            self._followers.discard(waiter)

    def retire(self) -> None:
        """Lets no other thread lead any more; returns when the present leader has ended its step."""
        self._retired_by = threading.get_ident()
        waiter = Waiter()
        with self._lock:
            self._followers.add(waiter)
        while self._taken and os.getpid() == self._process_id:  # threads do not survive a fork
            waiter.wait()


class LeaderFollower:
    """Lets one thread at a time run steps. Any thread may call its methods.

    When the interpreter exits, only the thread that ends it leads, for functions registered with `atexit`: another one
    that is within a forward pass would abort the process.

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
        self._lead = Lead()
        weakref.finalize(self, self._lead.retire)  # called at exit, too

    def run_until(self, ready: Callable[[], bool], waiter: Waiter) -> None:
        """Returns once `ready()`: leads until then, or waits while another thread leads.

        Args:
            ready: Whether this thread has what it waits for; the thread that makes it true wakes the waiter.
            waiter: This thread's.
        """
        try:
            while not ready():
                if not self._try_run(ready, waiter):
                    waiter.wait()
        finally:
            self._lead.forget(waiter)

    @property
    def has_retired(self) -> bool:
        """Whether the interpreter exits, so that the other threads run no more steps."""
        return self._lead.has_retired

    def reap(self) -> None:
        """Reaps now, unless another thread leads: that one does it in its next step, or when it resigns."""
        while self._has_pending():
            with DeferredSignals():
                if not self._lead.take(None):
                    return
                try:
                    self._reap()
                finally:
                    self._lead.resign()

    def _try_run(self, ready: Callable[[], bool], waiter: Waiter) -> bool:
        """Runs steps until `ready()`, a signal or the interpreter's exit; False if another thread leads."""
        with DeferredSignals() as signals:
            if not self._lead.take(waiter):
                return False
            try:
                while not (ready() or signals.received or self._lead.is_retired):
                    self._step()
            finally:
                self._lead.resign()
                self.reap()
            return True
