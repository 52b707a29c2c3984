"""How long something takes, as far as a shared machine can tell."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar("_Result")


def least_seconds(call: Callable[[], _Result], enough: float, goes: int = 5) -> tuple[_Result, float]:
    """The result, and the least processor time of some goes: other work on the machine only ever adds.

    Args:
        call: What is timed.
        enough: Once a go takes less than this, no further one is needed.
        goes: How many at most.
    """
    seconds, tracer = float("inf"), sys.gettrace()
    sys.settrace(None)  # measuring coverage takes five times as long as what is measured
    gc.disable()  # a full collection takes longer, and goes over what other tests left
    try:
        for _ in range(goes):
            before = time.thread_time()
            result = call()
            seconds = min(seconds, time.thread_time() - before)
            if seconds < enough:
                break
    finally:
        gc.enable()
        sys.settrace(tracer)
    return result, seconds
