"""Printing: data on stdout, as text or JSON, and messages on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli.streams import encodes_all

if TYPE_CHECKING:
    from rich.console import Console

    from adapterhub.registry import AdapterCard


def console() -> Console:
    """The console for text on stdout, with colour only on a terminal and without NO_COLOR."""
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False, emoji=False)


def emit_json(value: Any) -> None:
    """Prints a value as JSON on stdout; in ASCII where stdout's encoding lacks characters, so that none is lost."""
    emit(json.dumps(value, indent=2, ensure_ascii=not encodes_all(sys.stdout), default=str))


def emit(text: str, *, newline: bool = True) -> None:
    """Prints data on stdout and flushes."""
    # Without `file`, `click` takes an ASCII stream for a mistake and writes UTF-8.
    click.echo(text, sys.stdout, nl=newline)  # flushes


def note(text: str) -> None:
    """Prints a message that is not data, on stderr."""
    click.echo(text, err=True)


def warn(text: str) -> None:
    """Warns on stderr; what is not printable becomes a space."""
    click.echo(f"{style('Warning:', fg='yellow')} {_printable(text)}", err=True)


def fail(message: str, hint: str | None = None) -> None:
    """Reports an error and what to do about it on stderr."""
    click.echo(f"{style('Error:', fg='red')} {message}", err=True)
    if hint:
        click.echo(f"{style('Hint:', fg='cyan')} {hint}", err=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, cut: bool = False) -> None:
    """Prints rows on stdout, one line each, so that `grep` finds whole rows.

    Args:
        columns: The headings.
        rows: The cells; what is not printable becomes a space.
        cut: Truncate each line to the terminal's width; for tables whose last column may be lost.
    """
    from rich.cells import cell_len, set_cell_size
    from rich.text import Text

    cells = [[_printable(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    screen = console()
    edge: dict[str, Any] = {"soft_wrap": False, "no_wrap": True, "overflow": "ellipsis"}
    for number, row in enumerate(cells):
        line = "  ".join(map(set_cell_size, row, widths)).rstrip()
        screen.print(Text(line, "" if number else "bold"), **(edge if cut and screen.is_terminal else {}))


def fields(pairs: Iterable[tuple[str, str]]) -> None:
    """Prints `name  value` lines on stdout, without those that have no value."""
    from rich.text import Text

    shown = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in shown), default=0) + 2
    screen = console()
    for name, value in shown:
        for number, line in enumerate(value.splitlines()):
            head = "" if number else name
            screen.print(Text.assemble((head.ljust(width), "bold"), _printable(line)))


def style(text: str, **styles: Any) -> str:
    """Colours a text unless NO_COLOR is set; `click` removes colours where there is no terminal."""
    return text if os.environ.get("NO_COLOR") else click.style(text, **styles)


def _printable(text: str) -> str:
    # Cards are untrusted, and an escape sequence can rewrite what a terminal shows.
    return "".join(character if character.isprintable() else " " for character in text)


def registered(card: AdapterCard, as_json: bool) -> None:
    """Prints an adapter that has just been registered, and warns of what its card warns of."""
    for warning in card.warnings:
        warn(f"{card.ref}: {warning}.")
    if as_json:
        emit_json(card.model_dump(mode="json"))
    else:
        emit(card.ref)
