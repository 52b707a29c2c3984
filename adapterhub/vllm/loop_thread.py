"""A thread with an event loop, for callers that have none or must not wait on theirs."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from adapterhub.errors import EngineClosedError

T = TypeVar("T")
CLOSE_SECONDS = 10.0
"""How long `close` waits for its last coroutine, and then as long again for the thread."""

_log = logging.getLogger(__name__)


class LoopThread:
    """An event loop in a daemon thread of its own. Any other thread may call its methods."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # What `run` hands over comes before `close`'s last coroutine, or not at all. Reentrant, since the garbage
        # collector may close.
        self._lock = threading.RLock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="adapterhub-vllm", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine there, and returns or raises as it does.

        Raises:
            EngineClosedError: The thread has ended, or ends before the coroutine does.
        """
        with self._lock:
            if self._closed:
                work.close()
                raise EngineClosedError("The engine is closed.", hint="Make a new hub.")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError as error:
            raise EngineClosedError("The engine was closed.", hint="Make a new hub.") from error
        except BaseException:
            future.cancel()  # the caller was interrupted
            raise

    def call_soon(self, function: Callable[..., object], *arguments: object) -> None:
        """Has a function called there; nothing once the thread has ended."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)

    def close(self, last: Coroutine[Any, Any, object]) -> None:
        """Runs a last coroutine, cancels all others and ends the thread.

        Waits for it, but in that thread itself, and no longer than 20 seconds: a daemon thread holds up no exit.
        """
        with self._lock:
            self._closed = True
        if threading.current_thread() is not self._thread:
            asyncio.run_coroutine_threadsafe(self._end(last), self._loop)
            self._thread.join(2 * CLOSE_SECONDS)
            if self._thread.is_alive():
                _log.warning("The connections to vLLM servers are still being closed.")
        else:  # the garbage collector closes what nobody has closed, in any thread
            self._last_task = self._loop.create_task(self._end(last))

    async def _end(self, last: Coroutine[Any, Any, object]) -> None:
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await last
        finally:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for other in others:
                other.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            self._loop.stop()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()
