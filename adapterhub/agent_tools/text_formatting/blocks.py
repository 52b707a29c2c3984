"""A text as blocks: paragraphs, list items, lines that stand alone, and fenced code.

The blocks are the common part of Markdown and plain notes. One rule matters to whoever writes blocks back: a word for
which `opens_block` holds would begin another block at the beginning of a line, so a paragraph must not be broken
before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from adapterhub.agent_tools.text_formatting.fences import MARKER, SPACE, fenced

_SPACES = re.compile(f"{SPACE}+")
_STRAY = re.compile(
    rf"(?:^|(?<={SPACE}))[\u00a0\u2007\u202f]+(?={SPACE}|$)"
)  # between spaces they hold nothing
_LINE_BREAK = re.compile(r"\r\n?|\n")
_ITEM = re.compile(rf"({SPACE}*)({MARKER})(?:{SPACE}+(.*)|$)", re.DOTALL)
_RULE = r"(?:-{3,}|\*{3,}|_{3,}|={3,})"
_ALONE = re.compile(rf"(?:#{{1,6}}(?:{SPACE}|$)|[|>]|{_RULE}(?:{SPACE}|$)|(?:{MARKER}{SPACE}+)?(?:```|~~~))")
_OPENS = re.compile(rf"(?:{MARKER}|#{{1,6}}|{_RULE}|[|>].*|(?:```|~~~).*)$", re.DOTALL)


@dataclass
class Block:
    """A piece of a text.

    Attributes:
        kind: `"alone"` is a heading, a rule, or a line of a quotation or table, which is kept as one line.
        words: What a paragraph or item says, word by word; of the other kinds, their lines.
        marker: What a list item begins with, such as `"-"` or `"2."`.
        column: Where the marker stood.
        apart: Whether a blank line stood before.
    """

    kind: Literal["paragraph", "item", "alone", "code"]
    words: list[str] = field(default_factory=list)
    marker: str = ""
    column: int = 0
    apart: bool = False


def opens_block(word: str) -> bool:
    """Whether a line that begins with the word is no continuation of the line before."""
    return _OPENS.match(word) is not None


def split_words(text: str) -> list[str]:
    """The words of a text; a no-break space does not part words."""
    return [word for word in _SPACES.split(text) if word]


def split_blocks(text: str) -> list[Block]:
    """The blocks of a text, in order.

    Args:
        text: Plain text or Markdown. A list item goes on until a blank line or the next block. Code by indentation
            is not known: such lines are a paragraph.
    """
    blocks: list[Block] = []
    apart = False
    for is_code, lines in _runs(_LINE_BREAK.split(text)):
        if is_code:
            blocks.append(Block("code", lines, apart=apart and bool(blocks)))
            apart = False
            continue
        for line in lines:
            if line and (words := split_words(clean := _STRAY.sub(" ", line))):
                _add(blocks, clean, words, apart and bool(blocks))
                apart = False
            else:
                apart = True
    return blocks


def _runs(lines: Sequence[str]) -> Iterator[tuple[bool, list[str]]]:
    for is_code, run in groupby(fenced(list(lines)), key=lambda pair: pair[1]):
        yield is_code, [line for line, _ in run]


def _add(blocks: list[Block], line: str, words: list[str], apart: bool) -> None:
    bare = line[spaces.end() :] if (spaces := _SPACES.match(line)) else line
    if _ALONE.match(bare):
        blocks.append(Block("alone", [bare.rstrip()], apart=apart))
        return
    if item := _ITEM.match(line.expandtabs(4)):
        blocks.append(Block("item", words[1:], item[2], len(item[1]), apart))
    elif blocks and not apart and blocks[-1].kind in ("paragraph", "item"):
        blocks[-1].words += words
    else:
        blocks.append(Block("paragraph", words, apart=apart))
