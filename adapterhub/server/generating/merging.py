"""Several streams as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


async def merge(sources: Sequence[AsyncIterator[Item]]) -> AsyncGenerator[tuple[int, Item]]:
    """The items of all sources as they come, each with the number of its source.

    Args:
        sources: Are read side by side; an error of one is raised here, and the caller closes them all.
    """
    if len(sources) == 1:  # no task for each item
        async for item in sources[0]:
            yield 0, item
        return
    waiting = {_next(source): at for at, source in enumerate(sources)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                at, found = waiting.pop(task), task.result()
                if found is not None:
                    waiting[_next(sources[at])] = at
                    yield at, found
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def _next(source: AsyncIterator[Item]) -> asyncio.Task[Item | None]:
    async def read() -> Item | None:
        return await anext(source, None)

    return asyncio.ensure_future(read())
