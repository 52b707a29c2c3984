"""A row's columns, by the names that converters have for them, and the prompts of rows without a user's message."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ANY_THEME = "*"
"""Key of the prompt for themes that have none of their own."""
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class UnusableRowError(ValueError):
    """A row is no conversation; the message is the reason, without any of the row's text."""


@dataclass(frozen=True)
class Columns:
    """A row's columns, by a converter's names for them.

    Attributes:
        row: The row.
        mapping: From a converter's name to the column's, or to a place inside one, as in `instances.0.output`.
        prompts: Templates of the user's message for rows without one, used in turn, or by the row's theme; `{name}` is
            a column's text.
        number: The row's number, from 1.
    """

    row: Mapping[str, Any]
    mapping: Mapping[str, str]
    prompts: Sequence[str] | Mapping[str, str] = ()
    number: int = 1

    def has(self, *names: str) -> bool:
        """Whether one of these is there, mapped or not."""
        return any(_lookup(self.row, self.mapping.get(name, name)) is not None for name in names)

    def value(self, name: str, *others: str) -> Any:
        """The first value that is there: of the mapped columns, or if none is mapped, of `name` and `others`."""
        names = (name, *others)
        columns = [self.mapping[one] for one in names if one in self.mapping] or names
        found = (_lookup(self.row, column) for column in columns)
        # NaN, which is no value either, is unequal to itself.
        return next((value for value in found if value not in (None, "") and value == value), None)

    def text(self, name: str, *others: str) -> str:
        """The same as text, `""` if there is none."""
        value = self.value(name, *others)
        if isinstance(value, bool | dict | list):
            raise UnusableRowError(f"{name} is not text")
        return "" if value is None else str(value)

    def required(self, name: str, *others: str) -> str:
        """The same, where there has to be one."""
        text = self.text(name, *others)
        if not text.strip():
            raise UnusableRowError(f"no {name}")
        return text


def _lookup(row: Mapping[str, Any], column: str) -> Any:
    """A column's value, or what lies inside one, as in `instances.0.output`."""
    if column in row or "." not in column:
        return row.get(column)
    value: Any = row
    for key in column.split("."):
        if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        else:
            value = value.get(key) if isinstance(value, dict) else None
    return value


def shared_prompts(prompts: Sequence[str] | Mapping[str, str]) -> frozenset[str]:
    """Those of a source's prompts that say nothing about a row: used in turn, and without a column's text.

    Args:
        prompts: As for `Columns`.
    """
    if isinstance(prompts, Mapping):
        return frozenset()
    return frozenset(prompt for prompt in prompts if not _PLACEHOLDER.search(prompt))


def filled_prompt(columns: Columns) -> str:
    """The user's message of a row that has none; `""` where there are no prompts."""
    prompts = columns.prompts
    if isinstance(prompts, Mapping):
        template = prompts.get(columns.text("theme"), prompts.get(ANY_THEME))
        if template is None:
            raise UnusableRowError("no prompt for its theme")
    elif prompts:
        template = prompts[(columns.number - 1) % len(prompts)]
    else:
        return ""
    return _PLACEHOLDER.sub(lambda name: columns.required(name[1]), template)
