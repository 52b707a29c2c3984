"""The processor time that one validation or rendering of untrusted input may take."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

_Item = TypeVar("_Item")
_CHECK_EVERY = 64
"""Items between two readings of the clock."""


class DeadlineExceededError(Exception):
    """The time is used up."""


class Deadline:
    """A limit on the processor time of the current thread.

    It measures `time.thread_time()`: with the wall's or the process's time, a busy machine or another thread would
    decide the outcome. A full garbage collection does count where it falls into the limited work. It takes 0.3 s in a
    process that has imported torch and transformers, so a limit has to leave room for one.

    Args:
        seconds: The limit, from now on.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.thread_time() + seconds

    @property
    def remaining(self) -> float:
        """Seconds left; negative once the deadline has passed."""
        return self._end - time.thread_time()

    def check(self) -> None:
        """Returns if there is time left.

        Raises:
            DeadlineExceededError: There is none.
        """
        if self.remaining <= 0:
            raise DeadlineExceededError

    def limit(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yields the items until the deadline.

        Raises:
            DeadlineExceededError: It passed before the last item.
        """
        for index, item in enumerate(items):
            if index % _CHECK_EVERY == 0:
                self.check()
            yield item
