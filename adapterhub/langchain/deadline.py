"""Answers that have to end in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import TypeVar

from adapterhub.errors import DeadlineError

Answer = TypeVar("Answer")


def in_time(pieces: Iterator[str], seconds: float | None) -> Iterator[str]:
    """The pieces, while there is time; looked at when a piece arrives.

    Raises:
        DeadlineError: A piece came too late.
    """
    end = None if seconds is None else time.monotonic() + seconds
    for piece in pieces:
        if end is not None and time.monotonic() > end:
            raise _late(seconds)
        yield piece


async def ain_time(pieces: AsyncIterator[str], seconds: float | None) -> AsyncIterator[str]:
    """As `in_time`, but does not wait for a piece longer than there is time."""
    end = None if seconds is None else asyncio.get_running_loop().time() + seconds
    try:
        while True:
            async with asyncio.timeout_at(end):
                piece = await anext(pieces)
            yield piece
    except StopAsyncIteration:
        return
    except TimeoutError as error:
        raise _late(seconds) from error


async def within(answer: Awaitable[Answer], seconds: float | None) -> Answer:
    """The answer, if it is there in time; it is cancelled otherwise.

    Raises:
        DeadlineError: It was not.
    """
    try:
        return await asyncio.wait_for(answer, seconds)
    except TimeoutError as error:
        raise _late(seconds) from error


def _late(seconds: float | None) -> DeadlineError:
    return DeadlineError(f"The answer took longer than its {seconds} seconds.", hint="Raise timeout.")
