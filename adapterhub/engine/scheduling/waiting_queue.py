"""The waiting requests, and in what order they start.

By priority, then by arrival. A request that cannot start yet, because all slots or lanes are in use, is passed by those
that can; but each may be passed only so often. Then nobody passes it any more, what it waits for runs dry, and it
starts: however hot the other adapters are, a cold one is served.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

AGEING_SECONDS = 10.0
"""Waiting this long counts as one step of priority."""


class Waits(Protocol):
    """What the queue knows of a request: higher priorities start first."""

    @property
    def priority(self) -> int: ...


T = TypeVar("T", bound=Waits)


@dataclass(eq=False)
class _Place(Generic[T]):
    request: T
    arrived: float
    passed: int = field(default=0)

    def urgency(self, now: float) -> float:
        return self.request.priority + (now - self.arrived) / AGEING_SECONDS


class WaitingQueue(Generic[T]):
    """Requests that wait for a place in the batch.

    Args:
        patience: How many others may start before a request that was there earlier.
    """

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._places: list[_Place[T]] = []

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[T]:
        return (place.request for place in self._places)

    def push(self, request: T, now: float) -> None:
        """Adds a request at a time in seconds."""
        self._places.append(_Place(request, now))

    def discard(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Takes out, and returns, the requests that are not wanted any more."""
        gone = {id(place): place.request for place in self._places if unwanted(place.request)}
        if gone:
            self._places = [place for place in self._places if id(place) not in gone]
        return list(gone.values())

    def start(self, now: float, room: int, try_start: Callable[[T], bool | None]) -> None:
        """Starts requests while there is room.

        Args:
            now: The time in seconds.
            room: How many may start.
            try_start: Starts a request and returns True; False if what it needs is in use; None if it waits for
                something that no other request can take from it, such as a file that is being read.
        """
        # Sorting is stable, so equally urgent ones stay in the order in which they came.
        self._places.sort(key=lambda place: -place.urgency(now))
        passed: list[_Place[T]] = []
        may_pass = math.inf  # how many more may start before the least patient of those passed
        started: set[int] = set()
        for place in self._places:
            if len(started) >= room or may_pass <= 0:
                break
            outcome = try_start(place.request)
            if outcome:
                started.add(id(place))
                for earlier in passed:
                    earlier.passed += 1
                may_pass -= 1
            elif outcome is False:
                passed.append(place)
                may_pass = min(may_pass, self._patience - place.passed)
        if started:
            self._places = [place for place in self._places if id(place) not in started]
