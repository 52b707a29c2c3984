"""Keeps the cards of a remote registry current, in a thread of its own, so that no request waits for the store."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable

from adapterhub.errors import AdapterHubError

_log = logging.getLogger(__name__)


class Poller:
    """Calls a method of an object again and again for as long as the object lives.

    Args:
        refresh: A bound method.
        seconds: The pause between two calls.
    """

    def __init__(self, refresh: Callable[[], object], seconds: float) -> None:
        self._refresh, self._seconds = weakref.WeakMethod(refresh, lambda _: self.stop()), seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="adapterhub-registry", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether it has its thread, which does not survive a fork."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Ends it; a call that is running is not waited for."""
        self._stopped.set()

    def _run(self) -> None:
        failed = False
        while not self._stopped.wait(self._seconds):
            if (refresh := self._refresh()) is None:
                return
            try:
                refresh()
            except AdapterHubError as error:
                if not failed:
                    _log.warning("The registry's last known state is used: %s", error)
                failed = True
            else:
                failed = False
            del refresh  # else the object would live until the next call
