"""How long a validation may go on."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

_Item = TypeVar("_Item")


class OutOfTimeError(Exception):
    """The time for all rules together is used up."""


class Clock:
    """The processor time that a validation has left.

    It counts the time of this thread, not the wall's: what else the machine does must not change an answer.

    Args:
        seconds: How much there is.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.thread_time() + seconds

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
