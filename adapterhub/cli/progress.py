"""Progress of a long command on stderr: a bar on a terminal, else a line every few seconds, for logs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from adapterhub.cli import output

_SECONDS_BETWEEN_LINES = 5.0


class Show(Protocol):
    """Shows how far something is."""

    def __call__(self, done: int, total: int | None, note: str, *, due: bool | None = None) -> None:
        """Args:
        done: How much is done.
        total: How much there is; None: not known.
        note: Shown beside it.
        due: Where there is no terminal, whether to print a line; None: if the last one is five seconds old.
        """


@contextmanager
def progress(what: str) -> Iterator[Show]:
    """Shows the progress of something for as long as the block runs.

    Args:
        what: What goes on.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        output.note(f"{what} ...")
        yield lines(what)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None, note="")

        def show(done: int, total: int | None, note: str, *, due: bool | None = None) -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield show


def lines(what: str, clock: Callable[[], float] = time.monotonic) -> Show:
    """Prints a line at most every five seconds, those that are due, and the last one.

    Args:
        what: What goes on.
        clock: The time in seconds.
    """
    next_line = clock() + _SECONDS_BETWEEN_LINES

    def show(done: int, total: int | None, note: str, *, due: bool | None = None) -> None:
        nonlocal next_line
        if due is None:
            due = clock() >= next_line
        if (total is None or done < total) and not due:
            return
        next_line = clock() + _SECONDS_BETWEEN_LINES
        share = f"{done:,}" if total is None else f"{done:,} of {total:,}"
        output.note(f"{what}: {share}  {note}".rstrip())

    return show
