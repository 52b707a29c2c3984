"""Events of event loops that the thread which steps sets.

Handing a call to a loop costs that thread some microseconds, a system call and often the interpreter's lock, and a step
may have news for every stream. So the events of one step are set by a single call at its end.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class LoopEvents:
    """Makes events of event loops, and sets them together. Any thread may call `make`, one at a time `together`."""

    def __init__(self) -> None:
        self._wakers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Waker] = (
            weakref.WeakKeyDictionary()
        )
        self._lock = threading.Lock()  # guards it
        self._is_held = False

    def make(self) -> LoopEvent:
        """An event of the running event loop."""
        loop = asyncio.get_running_loop()
        with self._lock:
            waker = self._wakers.get(loop)
            if waker is None:
                waker = self._wakers[loop] = _Waker(loop)
        return LoopEvent(waker, self)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Events that are woken in this block are set at its end."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False
            with self._lock:
                wakers = list(self._wakers.values())
            for waker in wakers:
                waker.call()

    @property
    def is_held(self) -> bool:
        """Whether a thread is in a block of `together`."""
        return self._is_held


class LoopEvent:
    """An event that any thread may set and one task waits for; `LoopEvents.make` makes it."""

    def __init__(self, waker: _Waker, events: LoopEvents) -> None:
        self._waker, self._events = waker, events
        self._event = asyncio.Event()

    def wake(self) -> None:
        """Ends the current or the next `wait`."""
        # In this order: whoever ends a block of `together` meanwhile finds the event, or this thread calls.
        self._waker.add(self._event)
        if not self._events.is_held:
            self._waker.call()

    async def wait(self) -> None:
        """Returns once `wake` has been called since the last `wait`."""
        await self._event.wait()
        self._event.clear()


class _Waker:
    """Sets events of one loop, in one call all that have come together."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._woken: deque[asyncio.Event] = deque()

    def add(self, event: asyncio.Event) -> None:
        self._woken.append(event)

    def call(self) -> None:
        loop = self._loop()
        if loop is not None and self._woken:
            with suppress(RuntimeError):  # a closed loop has no task left that waits
                loop.call_soon_threadsafe(self._set_all)

    def _set_all(self) -> None:
        while self._woken:
            self._woken.popleft().set()
