"""Fenced code as in CommonMark: which lines of a text belong to it."""

from __future__ import annotations

import re
from collections.abc import Iterator

SPACE = r"[^\S\u00a0\u2007\u202f]"
"""White space at which a line may be broken: no-break spaces belong to their words."""
MARKER = r"(?:[-*+•–—]|[0-9]{1,9}[.)])"
"""The marker of a list item: CommonMark's, and the bullets and dashes of plain notes."""
_MAX_INDENT = 3
# A fence may follow a list marker. Backticks behind the opening ones make it inline code.
_LEAD = rf"(?:{SPACE}|[\u00a0\u2007\u202f]+(?={SPACE}))*"  # between ordinary spaces, a no-break space is one of them
_OPENING = re.compile(rf"({_LEAD}(?:{MARKER}{SPACE}{_LEAD})?)(`{{3,}}(?=[^`]*$)|~{{3,}})")
_CLOSING = re.compile(rf"({SPACE}*)(`{{3,}}|~{{3,}}){SPACE}*$")


def mark_fenced(lines: list[str]) -> Iterator[tuple[str, bool]]:
    """Yields every line and whether it belongs to fenced code, fences included; an open fence runs to the end."""
    fence, max_indent = "", 0
    for line in lines:
        if fence:
            yield line, True
            closing = _CLOSING.match(line)
            if closing and closing[2].startswith(fence) and len(closing[1].expandtabs(4)) <= max_indent:
                fence = ""
        else:
            opening = _OPENING.match(line)
            if opening:
                column = len(opening[1].expandtabs(4))
                # A fence further in is within a list item, which begins at most at the fence's column.
                fence, max_indent = opening[2], _MAX_INDENT + (column if column > _MAX_INDENT else 0)
            yield line, bool(opening)
