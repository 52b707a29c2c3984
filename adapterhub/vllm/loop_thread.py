"""A thread with an event loop, for callers that have none or must not wait on theirs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """An event loop in a daemon thread of its own. Any other thread may call its methods."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="adapterhub-vllm", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine there, and returns or raises as it does."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # the caller was interrupted
            raise

    def call_soon(self, function: Callable[..., object], *arguments: object) -> None:
        """Has a function called there; nothing once the thread has ended."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    def close(self, last: Coroutine[Any, Any, object]) -> None:
        """Runs a last coroutine and ends the thread. Waits for both, but in that thread itself."""
        if threading.current_thread() is not self._thread:
            asyncio.run_coroutine_threadsafe(self._end(last), self._loop)
            self._thread.join()
        else:  # the garbage collector closes what nobody has closed, in any thread
            self._last_task = self._loop.create_task(self._end(last))

    async def _end(self, last: Coroutine[Any, Any, object]) -> None:
        try:
            await last
        finally:
            self._loop.stop()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
