"""How long a validation may go on."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator
from threading import get_ident
from types import TracebackType
from typing import Self, TypeVar

_Item = TypeVar("_Item")
_OLDEST = 2
"""The generation whose collection goes through all objects that there are."""


class OutOfTimeError(Exception):
    """The time for all rules together is used up."""


class Clock:
    """The processor time that a validation has left.

    It counts the time of this thread, not the wall's: what else the machine does must not change an answer. Nor must
    Python's collection of all garbage, which can fall into any validation and takes 0.3 s where torch and transformers
    are imported: within `with`, what it takes is added. Collections of what is new count, since that is mostly the
    validation's own.

    Args:
        seconds: How much there is.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.thread_time() + seconds
        self._thread = get_ident()
        self._collecting_since: float | None = None

    def __enter__(self) -> Self:
        gc.callbacks.append(self._collecting)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        gc.callbacks.remove(self._collecting)

    @property
    def left(self) -> float:
        """Seconds left."""
        return self._end - time.thread_time()

    def check(self) -> None:
        """Goes on if there is time.

        Raises:
            OutOfTimeError: There is none left.
        """
        if self.left <= 0:
            raise OutOfTimeError

    def watch(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """The items, as long as there is time; looks at the clock every 64 of them."""
        for place, item in enumerate(items):
            if place % 64 == 0:
                self.check()
            yield item

    def _collecting(self, phase: str, info: dict[str, int]) -> None:
        """Called by Python as a collection starts and stops, on the thread that it falls into."""
        if get_ident() != self._thread or info["generation"] < _OLDEST:
            return
        now = time.thread_time()
        if phase == "stop" and self._collecting_since is not None:
            self._end += now - self._collecting_since
        self._collecting_since = now if phase == "start" else None
