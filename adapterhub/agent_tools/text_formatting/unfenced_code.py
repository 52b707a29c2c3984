"""Code and JSON without a fence: which lines of a text are kept as they are.

A line that ends in an opening bracket or a colon, with a line that is indented deeper below it, begins code. Code ends
at a blank line, unless the line after it is indented deeper or is a closing bracket.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from adapterhub.agent_tools.text_formatting.fences import MARKER, SPACE

Indents = tuple[int, int]
"""The columns of a paragraph's first line and of its other lines."""
_OPENER = re.compile(r"(?:[{(\[:]|=>|->|<[a-zA-Z][^<>]{0,200}>)$")
_NO_OPENER = re.compile(rf"{SPACE}*(?:{MARKER}(?:{SPACE}|$)|#{{1,6}}(?:{SPACE}|$)|[|>])")
_CLOSER = re.compile(r"[})\]]")


def code_end(lines: Sequence[str], start: int, paragraph: Indents) -> int:
    """The index after the last line of the code that begins at a line; arguments as for `code_starts`."""
    base, end = indent_of(lines[start]), start
    for index in range(start, len(lines)):
        line = lines[index]
        if not line.strip():
            continue
        column = indent_of(line)
        if index <= end + 1:
            base = min(base, column)
        elif (column <= base or column in paragraph) and not _CLOSER.match(line.strip()):
            break
        end = index
    return end + 1


def code_starts(lines: Sequence[str], paragraph: Indents) -> list[bool]:
    """Whether code begins at each line.

    Args:
        lines: Lines outside fenced code.
        paragraph: The columns of paragraphs: lines that stand so are none.
    """
    starts = [False] * (len(lines) + 1)
    for index in range(len(lines) - 2, -1, -1):
        line, below = lines[index].rstrip(), lines[index + 1]
        if below.strip() and _OPENER.search(line[-220:]) and not _NO_OPENER.match(line):
            starts[index] = starts[index + 1] or _is_body(line, below, paragraph)
    return starts


def _is_body(line: str, below: str, paragraph: Indents) -> bool:
    columns = (indent_of(line), indent_of(below))
    is_paragraph = columns == paragraph or _begins_paragraph(below, paragraph)
    return columns[0] < columns[1] and not is_paragraph and not _NO_OPENER.match(below)


def _begins_paragraph(line: str, paragraph: Indents) -> bool:
    """Whether a line stands as the first one of a paragraph that was formatted before."""
    return paragraph[0] > paragraph[1] and indent_of(line) == paragraph[0]


def indent_of(line: str) -> int:
    """The column of a line's first character; a tab ends at a multiple of 4."""
    expanded = line.expandtabs(4) if "\t" in line else line
    return len(expanded) - len(expanded.lstrip(" "))
