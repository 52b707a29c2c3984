"""Timeouts of answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import TypeVar

from adapterhub.errors import DeadlineError

Answer = TypeVar("Answer")


def iterate_with_timeout(chunks: Iterator[str], timeout: float | None) -> Iterator[str]:
    """Yields the chunks until the timeout, which is checked when a chunk arrives.

    Args:
        chunks: A stream of text.
        timeout: Seconds for the whole stream; None for no limit.

    Raises:
        DeadlineError: A chunk came too late.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    for chunk in chunks:
        if deadline is not None and time.monotonic() > deadline:
            raise _timed_out(timeout)
        yield chunk


async def aiterate_with_timeout(chunks: AsyncIterator[str], timeout: float | None) -> AsyncIterator[str]:
    """As `iterate_with_timeout`, but stops waiting for a chunk at the timeout."""
    deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout
    try:
        while True:
            async with asyncio.timeout_at(deadline):
                chunk = await anext(chunks)
            yield chunk
    except StopAsyncIteration:
        return
    except TimeoutError as error:
        raise _timed_out(timeout) from error


async def await_with_timeout(answer: Awaitable[Answer], timeout: float | None) -> Answer:
    """Awaits an answer; cancels it at the timeout.

    Raises:
        DeadlineError: It took longer.
    """
    try:
        return await asyncio.wait_for(answer, timeout)
    except TimeoutError as error:
        raise _timed_out(timeout) from error


def _timed_out(timeout: float | None) -> DeadlineError:
    return DeadlineError(f"The answer took longer than its {timeout} seconds.", hint="Raise timeout.")
