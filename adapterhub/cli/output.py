"""Everything that the commands print: data on stdout, all else on stderr, JSON where asked for."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console


def console() -> Console:
    """Where data for people goes: stdout, with colour only where it is a terminal and NO_COLOR is not set."""
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False)


def emit_json(value: Any) -> None:
    """Prints a value as JSON on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def emit(text: str, *, newline: bool = True) -> None:
    """Prints data on stdout at once."""
    click.echo(text, nl=newline)
    sys.stdout.flush()


def note(text: str) -> None:
    """Tells the person something that is not data, on stderr."""
    click.echo(text, err=True)


def warn(text: str) -> None:
    """Warns on stderr."""
    click.echo(f"{click.style('Warning:', fg='yellow')} {text}", err=True)


def fail(message: str, hint: str | None = None) -> None:
    """Reports an error and what to do about it on stderr."""
    click.echo(f"{click.style('Error:', fg='red')} {message}", err=True)
    if hint:
        click.echo(f"{click.style('Hint:', fg='cyan')} {hint}", err=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints rows as a plain table on stdout."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    console().print(grid)


def fields(pairs: Iterable[tuple[str, str]]) -> None:
    """Prints `name  value` lines on stdout, without those that have no value."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for name, value in pairs:
        if value:
            grid.add_row(Text(name, style="bold"), Text(value))
    console().print(grid)
