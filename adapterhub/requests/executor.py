"""Blocking work off the event loop."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

Result = TypeVar("Result")


class RequestExecutor:
    """Prepares requests in one thread and fits the router in another, so that neither blocks an event loop.

    One thread for all requests: only one runs Python at a time, and further ones would delay the event loop. Any
    thread may call `run`, `fit_router` and `close`.
    """

    def __init__(self) -> None:
        self._process_id = os.getpid()
        self._prepare, self._fit = _single_thread("prepare"), _single_thread("fit")

    async def run(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Runs a function in the thread for requests, with the caller's context variables."""
        self._restart_after_fork()
        context = copy_context()
        return await asyncio.get_running_loop().run_in_executor(self._prepare, context.run, work, *arguments)

    async def fit_router(self, fit: Callable[[], object]) -> None:
        """Runs what takes seconds in the other thread."""
        self._restart_after_fork()
        await asyncio.get_running_loop().run_in_executor(self._fit, fit)

    def close(self) -> None:
        """Ends the threads. Later calls start new ones, so that the engine can report that it is closed."""
        closing = self._prepare, self._fit
        self._restart()
        for executor in closing:
            executor.shutdown(wait=False)

    def _restart_after_fork(self) -> None:
        if os.getpid() != self._process_id:  # threads do not survive a fork
            self._restart()

    def _restart(self) -> None:
        self._process_id = os.getpid()
        self._prepare, self._fit = _single_thread("prepare"), _single_thread("fit")


def _single_thread(purpose: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"adapterhub-{purpose}")
