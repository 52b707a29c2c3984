"""Progress of a long command on stderr: a bar on a terminal, else a line every few seconds, for logs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adapterhub.cli import output

Show = Callable[[int, int | None, str], None]
"""Called with how much is done, how much there is (None: not known), and a note."""
_SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def progress(what: str, *, every: int | None = None) -> Iterator[Show]:
    """Shows the progress of something for as long as the block runs.

    Args:
        what: What goes on.
        every: Where there is no terminal, a line each time so much more is done, in place of one every five seconds.
    """
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        output.note(f"{what} ...")
        yield lines(what, every=every)
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
        yield lambda done, total, note: bar.update(task, completed=done, total=total, note=note)


def lines(what: str, clock: Callable[[], float] = time.monotonic, *, every: int | None = None) -> Show:
    """Prints a line at most every five seconds, and the last one.

    Args:
        what: What goes on.
        clock: The time in seconds.
        every: Print a line each time so much more is done instead.
    """
    next_line = clock() + _SECONDS_BETWEEN_LINES

    def show(done: int, total: int | None, note: str) -> None:
        nonlocal next_line
        due = clock() >= next_line if every is None else done % every == 0
        if (total is None or done < total) and not due:
            return
        next_line = clock() + _SECONDS_BETWEEN_LINES
        share = f"{done:,}" if total is None else f"{done:,} of {total:,}"
        output.note(f"{what}: {share}  {note}".rstrip())

    return show
