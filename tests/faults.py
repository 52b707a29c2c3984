"""A file system that fails: the n-th call that opens, writes, renames or flushes raises an `OSError`."""

from __future__ import annotations

import io
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

CALLS = [
    *((os, name) for name in ("open", "mkdir", "rename", "replace", "fsync", "scandir")),
    (io, "open"),
    (shutil, "copyfileobj"),
    (shutil, "copyfile"),
]


def failures(
    change: Callable[[], object], code: int, *, clean: Callable[[], object] = lambda: None
) -> Iterator[BaseException]:
    """Runs a change once for each of its calls to the file system, and yields what it raises when that call fails.

    Args:
        change: What to run.
        code: The `errno` of the failure.
        clean: Called after each run, where a failing clean-up leaves residue that makes more calls the next time.
    """
    for number in itertools.count(1):
        with pytest.MonkeyPatch.context() as patch:
            calls = itertools.count(1)
            for module, name in CALLS:
                patch.setattr(module, name, _failing(getattr(module, name), calls, number, code))
            try:
                change()
            except Exception as error:  # noqa: BLE001  whatever it raises is what the caller sees
                raised: BaseException | None = error
            else:
                raised = None
        clean()
        if next(calls) <= number:
            return  # it makes fewer calls
        if raised is not None:
            yield raised


def _failing(call: Callable[..., Any], calls: Iterator[int], number: int, code: int) -> Callable[..., Any]:
    def fail(*arguments: Any, **options: Any) -> Any:
        if next(calls) == number:
            raise OSError(code, os.strerror(code))
        return call(*arguments, **options)

    return fail
