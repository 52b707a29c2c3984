"""Holds back signals, such as Ctrl-C, while a thread changes what others share."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # those whose handlers usually raise


class DeferredSignals:
    """A context within which Python's handlers of SIGINT and SIGTERM wait for its end.

    Python calls them in the main thread, so there is nothing to do in others. A signal that comes twice is not held
    back any longer.

    Attributes:
        received: Whether a signal waits.
    """

    received = False

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._held: dict[int, FrameType | None] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            number: int
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if callable(handler):  # one of Python's: the default ones of the system are numbers
                    self._handlers[number] = handler
            try:
                for number in self._handlers:
                    signal.signal(number, self._hold)
            except BaseException:  # raised by the handler that is replaced last
                self._restore()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._restore()
        except BaseException:  # raised by the handler that is restored first
            self._restore()
            raise
        for number, frame in self._held.items():
            self._handlers[number](number, frame)

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _hold(self, number: int, frame: FrameType | None) -> None:
        if number in self._held:
            del self._held[number]
            self._handlers[number](number, frame)
        self._held[number] = frame
        self.received = True
