"""Who waits for a free server, in the order of priority and age."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count

from adapterhub.errors import CapacityError


class WaitingLine:
    """Tasks that wait until there may be room for one more. Used from one event loop."""

    def __init__(self) -> None:
        self._ages = count()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []

    def __bool__(self) -> bool:
        """Whether anyone waits."""
        return any(not future.done() for _, _, future in self._waiting)

    def place(self, priority: int) -> tuple[int, int]:
        """A place in the line: higher priorities come first, then those that came first."""
        return -priority, next(self._ages)

    async def wait(self, place: tuple[int, int]) -> None:
        """Returns when it is this place's turn to look for room."""
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (*place, future))
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # it was its turn: the next one's now
                self.wake_next()
            raise

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Who has looked for room lets the next one look at its end, unless there was no room."""
        try:
            yield
        except CapacityError:
            raise
        except BaseException:
            self.wake_next()
            raise
        else:
            self.wake_next()

    def wake_next(self) -> None:
        """Lets the first in the line look for room."""
        while self._waiting:
            _, _, future = heapq.heappop(self._waiting)
            if not future.done():
                future.set_result(None)
                return
