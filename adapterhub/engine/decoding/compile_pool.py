"""Compiles output formats off the event loop, so that one that takes long does not hold up others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from adapterhub.engine.decoding.grammar_compiler import GrammarCompiler
from adapterhub.engine.output_format import OutputFormat
from adapterhub.errors import CapacityError, EngineClosedError

QUICK_SECONDS = 0.1
"""Processor time after which an output format leaves the quick queue."""


class CompilePool:
    """Two queues: each output format starts in the quick one, and goes on in the slow one if it takes long.

    Few threads, since they run Python, for which an event loop waits. They are started when they are needed. Any
    thread may call the methods.

    Args:
        compiler: Compiles and caches.
    """

    def __init__(self, compiler: GrammarCompiler) -> None:
        self._compiler = compiler
        self._closed = False
        self._quick = ThreadPoolExecutor(1, thread_name_prefix="adapterhub-compile")
        self._slow = ThreadPoolExecutor(1, thread_name_prefix="adapterhub-compile-slow")

    async def compile(self, output_format: OutputFormat) -> None:
        """Puts a compiled grammar into the compiler's cache.

        Raises:
            InvalidRequestError: As `GrammarCompiler.compile`.
            EngineClosedError: The pool is closed, or was closed while the format waited.
            CapacityError: No thread can be started.
        """
        if self._compiler.is_compiled(output_format):
            return
        compiler = self._compiler
        if not await self._run(self._quick, lambda: compiler.try_compile(output_format, QUICK_SECONDS)):
            await self._run(self._slow, lambda: compiler.compile(output_format))

    def close(self) -> None:
        """Ends the threads, once what they compile now is compiled."""
        self._closed = True
        for executor in (self._quick, self._slow):
            executor.shutdown()

    async def _run(self, executor: ThreadPoolExecutor, work: Callable[[], object]) -> object:
        def work_unless_closed() -> object:
            # Not `cancel_futures`: a task that awaits a cancelled future takes itself for cancelled.
            self._refuse_if_closed()
            return work()

        self._refuse_if_closed()
        try:
            future = executor.submit(work_unless_closed)
        except RuntimeError as error:
            self._refuse_if_closed()
            raise CapacityError(
                "No thread can be started to compile the output format.",
                hint="Try again when others have ended.",
            ) from error
        return await asyncio.wrap_future(future)

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise EngineClosedError("The engine is closed.", hint="Make a new hub.")
