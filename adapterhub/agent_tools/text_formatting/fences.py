"""Fenced code: which lines of a text are inside it."""

from __future__ import annotations

import re
from collections.abc import Iterator

SPACE = r"[^\S\u00a0\u2007\u202f]"
"""Where a line may be broken: no-break spaces belong to their words."""
MARKER = r"(?:[-*+•–—]|[0-9]{1,9}[.)])"
"""What a list item begins with."""
# A fence may follow a list's marker. What stands behind backticks has none itself, else it is code within a line.
_OPENING = re.compile(rf"{SPACE}*(?:{MARKER}{SPACE}+)?(`{{3,}}(?=[^`]*$)|~{{3,}})")
_CLOSING = re.compile(rf"{SPACE}*(`{{3,}}|~{{3,}}){SPACE}*$")


def fenced(lines: list[str]) -> Iterator[tuple[str, bool]]:
    """Every line, and whether it belongs to fenced code, the fences included; an open fence runs to the end."""
    fence = ""
    for line in lines:
        if fence:
            yield line, True
            closing = _CLOSING.match(line)
            if closing and closing[1][0] == fence[0] and len(closing[1]) >= len(fence):
                fence = ""
        else:
            opening = _OPENING.match(line)
            fence = opening[1] if opening else ""
            yield line, bool(opening)
