"""Compiles output formats off the event loop, so that one that takes long does not hold up others."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from adapterhub.engine.decoding.grammar_compiler import GrammarCompiler
from adapterhub.engine.output_format import OutputFormat

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
        self._quick = ThreadPoolExecutor(1, thread_name_prefix="adapterhub-compile")
        self._slow = ThreadPoolExecutor(1, thread_name_prefix="adapterhub-compile-slow")

    async def compile(self, output_format: OutputFormat) -> None:
        """Puts a compiled grammar into the compiler's cache; raises as `GrammarCompiler.compile`."""
        if self._compiler.is_compiled(output_format):
            return
        loop = asyncio.get_running_loop()
        compile_quickly = self._compiler.try_compile
        if not await loop.run_in_executor(self._quick, compile_quickly, output_format, QUICK_SECONDS):
            await loop.run_in_executor(self._slow, self._compiler.compile, output_format)

    def close(self) -> None:
        """Ends the threads."""
        for executor in (self._quick, self._slow):
            executor.shutdown(cancel_futures=True)
