"""Calls of native code that recurses as deep as its input is long.

A native stack that overflows ends the process: there is no `RecursionError` to catch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from adapterhub.errors import CapacityError

Result = TypeVar("Result")
STACK_BYTES = 256 * 2**20
"""Address space of the stack; memory is used only as deep as the call goes. llguidance takes about 4 KB for a rule of a
grammar and 9 KB for a reference of a JSON Schema, and 64 KB of text hold thousands."""
_stack_size = threading.Lock()  # `threading.stack_size` holds for the whole process


def call_with_deep_stack(function: Callable[[], Result]) -> Result:
    """The function's result, from a thread with a large stack.

    Raises:
        CapacityError: No thread can be started.
        BaseException: What the function raises.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - a native panic is no Exception
            future.set_exception(error)

    thread = threading.Thread(target=run, name="adapterhub-deep-stack", daemon=True)
    try:
        _start(thread)
    except RuntimeError as error:
        raise CapacityError(
            "No thread can be started to compile the output format.", hint="Try again when others have ended."
        ) from error
    return future.result()


def _start(thread: threading.Thread) -> None:
    with _stack_size:
        size = threading.stack_size(STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(size)
