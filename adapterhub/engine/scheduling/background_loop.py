"""A thread that runs the engine's steps for callers that cannot block, and only while there are any."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from adapterhub.engine.scheduling.leader_follower import LeaderFollower, Waiter
from adapterhub.engine.scheduling.sequence import OutputQueue

IDLE_SECONDS = 2.0
_log = logging.getLogger(__name__)


class BackgroundLoop:
    """Starts the thread when a ticket is to be served; it ends by itself after some idle seconds.

    Args:
        turns: Whose steps it runs.
    """

    def __init__(self, turns: LeaderFollower) -> None:
        self._turns = turns
        self._waiter = Waiter()
        self._news = threading.Condition()
        self._open: set[OutputQueue] = set()
        self._thread: threading.Thread | None = None
        self._closed = False

    def serve(self, tickets: Iterable[OutputQueue]) -> None:
        """Runs steps until these answers have ended."""
        with self._news:
            self._open.update(tickets)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="adapterhub-steps", daemon=True)
                self._thread.start()
            self._news.notify()

    def close(self) -> None:
        """Ends the thread; every answer must have ended."""
        with self._news:
            self._closed = True
            thread = self._thread
            self._news.notify()
        self._waiter.wake()
        if thread:
            thread.join()

    def _run(self) -> None:
        while True:
            try:
                self._turns.until(self._is_idle, self._waiter)
            except Exception:  # noqa: BLE001  the thread serves others too
                _log.exception("A step of the engine failed; its answers have ended with an error.")
            with self._news:
                if self._is_idle() and not self._closed:
                    self._news.wait(IDLE_SECONDS)
                if self._is_idle():
                    self._thread = None
                    return

    def _is_idle(self) -> bool:
        with self._news:  # a condition's lock may be taken again by the thread that holds it
            self._open = {ticket for ticket in self._open if ticket.open}
            return not self._open
