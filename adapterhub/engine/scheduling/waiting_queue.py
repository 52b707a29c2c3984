"""The waiting requests, and the order in which they are scheduled.

By priority, then by arrival. A request that cannot start because all slots are in use is bypassed by those that can,
but at most `max_bypasses` times. After that no request starts before it, running sequences end, and it starts: a
request for a cold adapter is served however hot the other adapters are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

AGING_SECONDS = 10.0
"""Waiting this long counts as one step of priority."""


class Schedulable(Protocol):
    """What the queue needs to know of a request: higher priorities start first."""

    @property
    def priority(self) -> int: ...


T = TypeVar("T", bound=Schedulable)


@dataclass(eq=False)
class _Entry(Generic[T]):
    request: T
    priority: float
    arrival: float
    bypasses: int = field(default=0)

    def effective_priority(self, now: float) -> float:
        return self.priority + (now - self.arrival) / AGING_SECONDS


class WaitingQueue(Generic[T]):
    """Requests that wait to be scheduled. Not thread-safe: the thread that steps uses it; any thread may read its
    length and iterate.

    Args:
        max_bypasses: How many later requests may start before one that waits.
    """

    def __init__(self, max_bypasses: int) -> None:
        self._max_bypasses = max_bypasses
        self._entries: list[_Entry[T]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[T]:
        return (entry.request for entry in self._entries)

    def push(self, request: T, now: float) -> None:
        """Adds a request; `now` is the time in seconds. Raises, and adds nothing, if its priority is no number."""
        self._entries.append(_Entry(request, float(request.priority), now))

    def remove_if(self, condition: Callable[[T], bool]) -> list[T]:
        """Removes and returns the requests for which a condition holds."""
        removed = {id(entry): entry.request for entry in self._entries if condition(entry.request)}
        if removed:
            self._entries = [entry for entry in self._entries if id(entry) not in removed]
        return list(removed.values())

    def schedule(self, now: float, max_starts: int, try_start: Callable[[T], bool | None]) -> None:
        """Starts requests, in order.

        Args:
            now: The time in seconds.
            max_starts: Maximum number of requests to start.
            try_start: Starts a request and returns True; False if what it needs is in use; None if it waits for
                something that no other request can take, such as a file that is being loaded.
        """
        # Sorting is stable, so requests of equal priority stay in order of arrival.
        # A new list, since other threads may iterate over the old one.
        self._entries = sorted(self._entries, key=lambda entry: -entry.effective_priority(now))
        bypassed: list[_Entry[T]] = []
        bypasses_left = math.inf  # the minimum over those that were bypassed
        started: set[int] = set()
        try:
            for entry in self._entries:
                if len(started) >= max_starts or bypasses_left <= 0:
                    break
                outcome = try_start(entry.request)
                if outcome:
                    started.add(id(entry))
                    for earlier in bypassed:
                        earlier.bypasses += 1
                    bypasses_left -= 1
                elif outcome is False:
                    bypassed.append(entry)
                    bypasses_left = min(bypasses_left, self._max_bypasses - entry.bypasses)
        finally:  # also where `try_start` raises: what has started must not start again
            if started:
                self._entries = [entry for entry in self._entries if id(entry) not in started]
