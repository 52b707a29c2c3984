"""A progress bar for a terminal: step, loss, speed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from adapterhub.training.trainer import TrainingStep


@contextmanager
def progress_bar(title: str, console: Console | None = None) -> Iterator[Callable[[TrainingStep], None]]:
    """Shows a bar while the block runs, and gives the function that moves it.

    Args:
        title: What stands before the bar.
        console: Where to draw; stderr if not given, since stdout is for data.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console or Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, figures="")

        def moved(now: TrainingStep) -> None:
            bar.update(task, completed=now.step, total=now.steps, figures=_figures(now))

        yield moved


def _figures(now: TrainingStep) -> str:
    evaluated = f"  eval {now.eval_loss:.3f}" if now.eval_loss is not None else ""
    return f"loss {now.loss:.3f}{evaluated}  {now.steps_per_second:.2f} steps/s"
