"""The values of a template's fields."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from adapterhub.errors import ToolError

FieldValue = str | list[str] | list[dict[str, str]]
"""The value of a field: a text, a list of texts, or a list of entries that have fields themselves."""
_MAX_DEPTH = 3  # fields, a list, an entry


def numbers_as_text(value: Any, depth: int = _MAX_DEPTH) -> Any:
    """Writes numbers and booleans as JSON does, and leaves out None, in fields as a model or a program gives them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if not depth:
        return value
    if isinstance(value, list | tuple):
        return [numbers_as_text(item, depth - 1) for item in value if item is not None]
    if isinstance(value, Mapping):
        return {name: numbers_as_text(item, depth - 1) for name, item in value.items() if item is not None}
    return value


def field_values(fields: Mapping[str, Any]) -> dict[str, FieldValue]:
    """The values by name, with numbers as text.

    Raises:
        ToolError: A value is no text, number, list of texts or list of entries, or a number is too long.
    """
    try:
        values: dict[str, FieldValue] = numbers_as_text(fields)
    except ValueError as error:
        raise ToolError(f"A number has more than {sys.get_int_max_str_digits()} digits.") from error
    for name, value in values.items():
        if not isinstance(name, str) or not (isinstance(value, str) or _is_list(value)):
            raise ToolError(
                f"The field {name!r} cannot be rendered.",
                hint="Give a text, a number, a list of them, or a list of entries that have fields.",
            )
    return values


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) or _is_entry(item) for item in value)


def _is_entry(item: Any) -> bool:
    return isinstance(item, dict) and all(isinstance(part, str) for pair in item.items() for part in pair)
