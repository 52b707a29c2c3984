"""Blocking work off the event loop."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any, TypeVar

from adapterhub.errors import CapacityError

Result = TypeVar("Result")

STUCK_AFTER = 5.0
"""Seconds after which work counts as stuck; preparing a request takes milliseconds."""
MAX_STUCK = 4
_IDLE_SECONDS = 10.0


class RequestExecutor:
    """Prepares requests in one thread and fits the router in another, so that neither blocks an event loop.

    One thread for all requests: only one runs Python at a time, and further ones would delay the event loop. A thread
    whose work is stuck is replaced, so that it holds neither other requests nor the interpreter's exit. Any thread may
    call `run`, `fit_router` and `close`.

    Args:
        stuck_after: Seconds after which work counts as stuck.
    """

    def __init__(self, stuck_after: float = STUCK_AFTER) -> None:
        self._stuck_after = stuck_after
        self._start()

    async def run(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Runs a function in the thread for requests, with the caller's context variables.

        Raises:
            CapacityError: Too many threads are stuck.
        """
        self._restart_after_fork()
        context = copy_context()
        return await self._prepare.run(lambda: context.run(work, *arguments))

    async def fit_router(self, fit: Callable[[], object]) -> None:
        """Runs what takes seconds in the other thread."""
        self._restart_after_fork()
        await self._fit.run(fit)

    def close(self) -> None:
        """Ends the threads. Later calls start new ones, so that the engine can report that it is closed."""
        self._restart_after_fork()
        self._prepare.close()
        self._fit.close()

    def _restart_after_fork(self) -> None:
        if os.getpid() != self._process_id:  # threads do not survive a fork
            self._start()

    def _start(self) -> None:
        self._process_id = os.getpid()
        self._prepare = _Worker("prepare", self._stuck_after)
        self._fit = _Worker("fit", float("inf"))


class _Worker:
    """Runs one piece of work at a time, in order, in a thread of its own.

    Args:
        purpose: A part of the thread's name.
        stuck_after: Seconds of one piece after which another thread goes on with the others.
    """

    def __init__(self, purpose: str, stuck_after: float) -> None:
        self._purpose, self._stuck_after = purpose, stuck_after
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._since: float | None = None  # when the thread began its present work
        self._stuck: set[threading.Thread] = set()

    async def run(self, work: Callable[[], Result]) -> Result:
        future: Future[Result] = Future()
        self._waiting.put((future, work))
        self._ensure_thread()
        waiting = asyncio.wrap_future(future)
        patience = None if self._stuck_after == float("inf") else self._stuck_after
        try:
            while not (await asyncio.wait({waiting}, timeout=patience))[0]:
                self._replace_stuck(future)
        except BaseException:
            future.cancel()  # at once; through `waiting` it would wait for the event loop, and the work might begin
            waiting.cancel()
            raise
        return waiting.result()

    def close(self) -> None:
        with self._lock:
            if self._thread is not None:
                self._thread = None
                self._waiting.put(None)

    def _ensure_thread(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._start()

    def _start(self) -> None:
        # A daemon: the interpreter's exit waits for no stuck work.
        self._since = None
        self._thread = threading.Thread(target=self._work, name=f"adapterhub-{self._purpose}", daemon=True)
        self._thread.start()

    def _replace_stuck(self, waiting: Future[Any]) -> None:
        with self._lock:
            since = self._since
            if self._thread is None or since is None or time.monotonic() - since < self._stuck_after:
                return
            self._stuck = {thread for thread in self._stuck if thread.is_alive()}
            if len(self._stuck) < MAX_STUCK:
                self._stuck.add(self._thread)
                self._start()
                return
        if waiting.cancel():
            raise CapacityError(
                f"{MAX_STUCK + 1} requests have been in preparation for more than {self._stuck_after:g} s.",
                hint="Look for a registry on a disk that does not answer, and restart the process.",
            )

    def _work(self) -> None:
        me = threading.current_thread()
        while True:
            try:
                item = self._waiting.get(timeout=_IDLE_SECONDS)
            except queue.Empty:
                item = None
            with self._lock:
                if item is None:  # idle, or closed
                    if self._thread is me and not self._waiting.empty():
                        continue
                    if self._thread is me:
                        self._thread = None
                    return
                if self._thread is me:
                    self._since = time.monotonic()
            future, work = item
            if future.set_running_or_notify_cancel():
                _run(future, work)
            del item, future, work  # an idle thread keeps nothing alive
            with self._lock:
                if me in self._stuck:  # another thread goes on
                    return
                self._since = None


def _run(future: Future[Any], work: Callable[[], Any]) -> None:
    try:
        result = work()
    except StopIteration as error:  # asyncio's futures cannot hold it, and the caller would wait for ever
        failure = RuntimeError(f"Preparing a request raised {type(error).__name__}.")
        failure.__cause__ = error
        future.set_exception(failure)
    except BaseException as error:  # noqa: BLE001  the caller's to handle
        future.set_exception(error)
    else:
        future.set_result(result)
