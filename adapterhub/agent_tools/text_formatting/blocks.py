"""Parsing a text into blocks: paragraphs, list items, single lines, fenced code.

The blocks are the common part of Markdown and plain notes. Writing blocks back has one constraint: a word for which
`starts_block` holds must not become the first word of a line within a paragraph, because it would start a new block.

`markdown-it-py` is not used: it takes 2 to 4 times as long, drops text beyond 20 levels of nesting, and reads output
that is indented or aligned to the right as indented code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from adapterhub.agent_tools.text_formatting.fences import MARKER, SPACE, mark_fenced

_SPACES = re.compile(f"{SPACE}+")
# Between ordinary spaces, a no-break space holds no words together.
_STRAY_NO_BREAK = re.compile(rf"(?:^|(?<={SPACE}))[\u00a0\u2007\u202f]+(?={SPACE}|$)")
_LINE_BREAK = re.compile(r"\r\n?|\n")
_ITEM = re.compile(rf"({SPACE}*)({MARKER})(?:{SPACE}+(.*)|$)", re.DOTALL)
_RULE = r"(?:-{3,}|\*{3,}|_{3,}|={3,})"
_SINGLE_LINE = re.compile(
    rf"(?:#{{1,6}}(?:{SPACE}|$)|[|>]|{_RULE}(?:{SPACE}|$)|(?:{MARKER}{SPACE}+)?(?:```|~~~))"
)
_BLOCK_START = re.compile(rf"(?:{MARKER}|#{{1,6}}|{_RULE}|[|>].*|(?:```|~~~).*)$", re.DOTALL)


@dataclass
class Block:
    """A block of a text.

    Attributes:
        kind: `"line"` is a heading, a thematic break, or a line of a quotation or table, which is not wrapped.
        words: The words of a paragraph or item; of other kinds, their lines.
        marker: The marker of a list item, such as `"-"` or `"2."`.
        column: The column of the marker.
        blank_before: Whether a blank line stood before.
    """

    kind: Literal["paragraph", "item", "line", "code"]
    words: list[str] = field(default_factory=list)
    marker: str = ""
    column: int = 0
    blank_before: bool = False


def starts_block(word: str) -> bool:
    """Whether a line that begins with the word starts a block, so that it cannot continue a paragraph."""
    return _BLOCK_START.match(word) is not None


def split_words(text: str) -> list[str]:
    """Splits a text into words; a no-break space does not separate words."""
    return [word for word in _SPACES.split(text) if word]


def parse_blocks(text: str) -> list[Block]:
    """Parses a text into blocks.

    Args:
        text: Plain text or Markdown. A list item ends at a blank line or the next block. Indented code is not
            recognised: it is a paragraph.
    """
    blocks: list[Block] = []
    blank_before = False
    for is_code, lines in _fenced_runs(_LINE_BREAK.split(text)):
        if is_code:
            blocks.append(Block("code", lines, blank_before=blank_before and bool(blocks)))
            blank_before = False
            continue
        for line in lines:
            if line and (words := split_words(clean := _STRAY_NO_BREAK.sub(" ", line))):
                _add_line(blocks, clean, words, blank_before and bool(blocks))
                blank_before = False
            else:
                blank_before = True
    return blocks


def _fenced_runs(lines: Sequence[str]) -> Iterator[tuple[bool, list[str]]]:
    for is_code, run in groupby(mark_fenced(list(lines)), key=lambda pair: pair[1]):
        yield is_code, [line for line, _ in run]


def _add_line(blocks: list[Block], line: str, words: list[str], blank_before: bool) -> None:
    unindented = line[spaces.end() :] if (spaces := _SPACES.match(line)) else line
    if _SINGLE_LINE.match(unindented):
        blocks.append(Block("line", [unindented.rstrip()], blank_before=blank_before))
        return
    if item := _ITEM.match(line.expandtabs(4)):
        blocks.append(Block("item", words[1:], item[2], len(item[1]), blank_before))
    elif blocks and not blank_before and blocks[-1].kind in ("paragraph", "item"):
        blocks[-1].words += words
    else:
        blocks.append(Block("paragraph", words, blank_before=blank_before))
