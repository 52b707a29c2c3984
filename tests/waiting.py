"""Waiting for what another thread, task or process does: each wait ends, and fails where it was in vain."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

SECONDS = 60.0
"""A machine that does much else may be late; what never comes fails the test and not the whole run."""


def wait_for(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    """Returns once a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it has not happened"
        time.sleep(0.002)


async def until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    """The same on an event loop."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)
