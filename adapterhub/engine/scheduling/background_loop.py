"""A thread that runs the engine's steps for callers that cannot block, while there are any."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from adapterhub.engine.scheduling.leader_follower import LeaderFollower, Waiter
from adapterhub.engine.scheduling.output_queue import OutputQueue
from adapterhub.errors import EngineClosedError, EngineError, is_interrupt, traceback_without_texts

IDLE_SECONDS = 2.0
_log = logging.getLogger(__name__)


class BackgroundLoop:
    """Starts a thread when there are sequences to run; it ends by itself after `IDLE_SECONDS` without any.

    Any thread may call its methods.

    Args:
        stepping: Runs the steps; the thread competes for the lead like any other.
    """

    def __init__(self, stepping: LeaderFollower) -> None:
        self._stepping = stepping
        self._waiter = Waiter()
        self._condition = threading.Condition()  # its lock is reentrant
        self._open: set[OutputQueue] = set()
        self._thread: threading.Thread | None = None
        self._closed = False

    def run(self, outputs: Iterable[OutputQueue]) -> None:
        """Has steps run until these sequences have finished or are aborted; does not block.

        Raises:
            EngineClosedError: The interpreter exits.
        """
        if self._stepping.has_retired:
            raise EngineClosedError("The interpreter exits.", hint="Ask earlier, or with generate().")
        with self._condition:
            self._open.update(outputs)
            if self._thread is None:
                self._thread = threading.Thread(target=self._loop, name="adapterhub-steps", daemon=True)
                self._thread.start()
            self._condition.notify()

    def close(self) -> None:
        """Ends the thread; every sequence must have finished."""
        with self._condition:
            self._closed = True
            thread = self._thread
            self._condition.notify()
        self._waiter.wake()
        if thread:
            thread.join()

    def _loop(self) -> None:
        while True:
            try:
                self._stepping.run_until(self._is_idle, self._waiter)
            except BaseException as error:  # noqa: BLE001  the thread serves later callers, whatever ended a step
                _log.error(
                    "A step in the engine's thread failed; its sequences end with an error.\n%s",
                    traceback_without_texts(error),
                )
                if is_interrupt(error):  # else the failed step has ended them
                    self._end_all()
            with self._condition:
                if self._is_idle() and not self._closed:
                    self._condition.wait(IDLE_SECONDS)
                if self._is_idle():
                    self._thread = None
                    return

    def _end_all(self) -> None:
        """Ends the sequences of this thread's callers; those of other threads go on."""
        with self._condition:
            outputs = list(self._open)
        for output in outputs:
            output.put(EngineError("The engine's thread was interrupted.", hint="Ask again."))
            output.aborted = True
        self._stepping.reap()

    def _is_idle(self) -> bool:
        with self._condition:
            self._open = {output for output in self._open if output.is_open}
            return not self._open
