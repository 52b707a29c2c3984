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

from adapterhub.agent_tools.text_formatting.east_asian import is_joined
from adapterhub.agent_tools.text_formatting.fences import MARKER, SPACE, mark_fenced
from adapterhub.agent_tools.text_formatting.unfenced_code import Indents, code_end, code_starts, indent_of

_SPACES = re.compile(f"{SPACE}+")
# Between ordinary spaces, a no-break space holds no words together.
_STRAY_NO_BREAK = re.compile(rf"(?:^|(?<={SPACE}))[\u00a0\u2007\u202f]+(?={SPACE}|$)")
_LINE_BREAK = re.compile(r"\r\n?|\n")
_ITEM = re.compile(rf"({SPACE}*)({MARKER})(?:{SPACE}+(.*)|$)", re.DOTALL)
_RULE = r"(?:-{3,}|\*{3,}|_{3,}|={3,})"
_SINGLE_LINE = re.compile(
    rf"(?:#{{1,6}}(?:{SPACE}|$)|[|>]|{_RULE}(?:{SPACE}|$)|(?:{MARKER}{SPACE}+)?(?:```|~~~))"
)
# `User:`, `Subject:`, `**Ввод:**`. A full-width letter can stand at the end of any Chinese or Japanese line.
_LABEL = r"(?:\*\*)?(?![Ａ-Ｚ])(?=(\w))[^\W\d_](?:\w|-){0,30}:(?:\*\*)?"
_BLOCK_START = re.compile(rf"(?:{MARKER}|#{{1,6}}|{_RULE}|[|>].*|(?:```|~~~).*|{_LABEL})$", re.DOTALL)
HardBreak = Literal["spaces", "backslash"]


@dataclass
class Block:
    """A block of a text.

    Attributes:
        kind: `"line"` is a heading, a thematic break, or a line of a quotation or table, which is not wrapped.
        words: The words of a paragraph or item; of other kinds, their lines.
        breaks: The indices of the words before which the text has a line break.
        hard_breaks: Those of them that Markdown keeps, and what marks them.
        marker: The marker of a list item, such as `"-"` or `"2."`.
        column: The column of the marker, or of a paragraph's first line.
        blank_before: Whether a blank line stood before.
    """

    kind: Literal["paragraph", "item", "line", "code"]
    words: list[str] = field(default_factory=list)
    breaks: list[int] = field(default_factory=list)
    hard_breaks: dict[int, HardBreak] = field(default_factory=dict)
    marker: str = ""
    column: int = 0
    blank_before: bool = False

    def continue_with(self, words: Sequence[str], mark: HardBreak | None = None) -> None:
        """Adds the words of the next line.

        Args:
            words: The words.
            mark: What makes the line break before them a hard one, if it is.
        """
        if self.words and words and not mark and is_joined(self.words[-1], words[0]):
            self.words[-1] += words[0]  # no line may begin so, and the line break stands for no space
            words = words[1:]
        elif self.words and words:
            self.breaks.append(len(self.words))
            if mark:
                self.hard_breaks[len(self.words)] = mark
        self.words += words


def starts_block(word: str) -> bool:
    """Whether a line that begins with the word starts a block, so that it cannot continue a paragraph."""
    start = _BLOCK_START.match(word)
    return start is not None and (start[1] is None or start[1].isupper())


def split_words(text: str) -> list[str]:
    """Splits a text into words; a no-break space does not separate words."""
    return [word for word in _SPACES.split(text) if word]


def parse_blocks(text: str, paragraph: Indents | None = (0, 0)) -> list[Block]:
    """Parses a text into blocks.

    Args:
        text: Plain text or Markdown. A list item ends at a blank line or the next block. A line that begins with a
            label such as `User:` begins a paragraph.
        paragraph: The columns of the first and the other lines of paragraphs, if the text was formatted before; None
            if it was aligned, so that its indentation has no meaning. Then there is no code without a fence.
    """
    parser = _Parser()
    for is_code, lines in _fenced_runs(_LINE_BREAK.split(text)):
        if is_code:
            parser.add_code(lines)
            continue
        starts = code_starts(lines, paragraph) if paragraph else [False] * len(lines)
        index = 0
        while index < len(lines):
            if paragraph and starts[index]:
                end = code_end(lines, index, paragraph)
                parser.add_code(lines[index:end])
                index = end
            else:
                parser.add_line(lines[index])
                index += 1
    return parser.blocks


def _fenced_runs(lines: Sequence[str]) -> Iterator[tuple[bool, list[str]]]:
    for is_code, run in groupby(mark_fenced(list(lines)), key=lambda pair: pair[1]):
        yield is_code, [line for line, _ in run]


class _Parser:
    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._blank_before = False
        self._last_line = ""

    def add_code(self, lines: list[str]) -> None:
        self.blocks.append(Block("code", lines, blank_before=self._take_blank()))

    def add_line(self, line: str) -> None:
        clean = _STRAY_NO_BREAK.sub(" ", line)
        words = split_words(clean)
        if not words:
            self._blank_before = True
            return
        self._add_words(clean, words)
        self._last_line = clean

    def _take_blank(self) -> bool:
        taken, self._blank_before = self._blank_before and bool(self.blocks), False
        return taken

    def _add_words(self, line: str, words: list[str]) -> None:
        unindented = line[spaces.end() :] if (spaces := _SPACES.match(line)) else line
        blank_before = self._take_blank()
        if _SINGLE_LINE.match(unindented):
            self.blocks.append(Block("line", [unindented.rstrip()], blank_before=blank_before))
        elif item := _ITEM.match(line.expandtabs(4)):
            self.blocks.append(
                Block("item", words[1:], marker=item[2], column=len(item[1]), blank_before=blank_before)
            )
        elif self._continues(words, blank_before):
            self.blocks[-1].continue_with(words, self._hard_break())
        else:
            self.blocks.append(Block("paragraph", words, column=indent_of(line), blank_before=blank_before))

    def _continues(self, words: list[str], blank_before: bool) -> bool:
        is_open = bool(self.blocks) and self.blocks[-1].kind in ("paragraph", "item")
        return is_open and not blank_before and not starts_block(words[0])

    def _hard_break(self) -> HardBreak | None:
        if self._last_line.endswith("  "):
            return "spaces"
        return "backslash" if self._last_line.endswith("\\") else None
