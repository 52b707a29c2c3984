"""Wrapping and aligning a text.

Invariants for every text: the characters other than white space stay, in their order; no line is wider than the width
unless it is a single word, a heading, table, quotation or code, or ends in words that must not start a line; and
formatting is idempotent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from adapterhub.agent_tools.text_formatting.blocks import Block, parse_blocks, starts_block
from adapterhub.agent_tools.text_formatting.width import display_width
from adapterhub.errors import ToolError

Align = Literal["left", "right", "center", "justify"]


@dataclass(frozen=True)
class TextLayout:
    """Width, indents and alignment of a text.

    Attributes:
        width: Maximum columns of a line, indent included.
        indent: Spaces before every line.
        first_line_indent: Spaces before the first line of a paragraph; `indent` if None.
        align: Alignment of paragraphs; list items stay on the left.
        preserve_paragraphs: Keep paragraphs separate; otherwise consecutive ones are joined.

    Raises:
        ToolError: An indent leaves no column for the text.
    """

    width: int = 80
    indent: int = 0
    first_line_indent: int | None = None
    align: Align = "left"
    preserve_paragraphs: bool = True

    def __post_init__(self) -> None:
        if not 0 <= max(self.indent, self.first_indent) < self.width:
            raise ToolError(
                f"An indent of {max(self.indent, self.first_indent)} does not fit a width of {self.width}.",
                hint="Lower the indent.",
            )

    @property
    def first_indent(self) -> int:
        """Spaces before the first line of a paragraph."""
        return self.indent if self.first_line_indent is None else self.first_line_indent


def format_text(text: str, layout: TextLayout | None = None) -> str:
    """Wraps a text on words and aligns it; list items get hanging indents, fenced code is not changed.

    Args:
        text: Plain text or Markdown.
        layout: Width, indents and alignment; 80 columns on the left if not given.
    """
    layout = layout or TextLayout()
    blocks = parse_blocks(text)
    if not layout.preserve_paragraphs:
        blocks = list(_join_paragraphs(blocks))
    indents = _ItemIndents(layout)
    lines: list[str] = []
    for block in blocks:
        lines += [""] if block.blank_before else []
        lines += _lines(block, layout, indents)
    return "\n".join(lines)


class _ItemIndents:
    """The indents of nested list items: an item is aligned with the text of its parent item."""

    def __init__(self, layout: TextLayout) -> None:
        self._left = layout.indent
        self._max = layout.indent + (layout.width - layout.indent) // 2  # half of a line is for the text
        self._open: list[
            tuple[int, int]
        ] = []  # for each level: its column in the source, its children's indent

    def add(self, block: Block) -> int:
        """Returns the indent of the next item."""
        while self._open and self._open[-1][0] >= block.column:
            self._open.pop()
        indent = min(self._open[-1][1] if self._open else self._left, self._max)
        self._open.append((block.column, indent + len(block.marker) + 1))
        return indent

    def close(self) -> None:
        """Ends the list."""
        self._open.clear()


def _lines(block: Block, layout: TextLayout, indents: _ItemIndents) -> Iterator[str]:
    if block.kind == "item":
        lead = " " * indents.add(block) + block.marker + " "
        lines = _fill(block.words, len(lead), len(lead), layout.width) or [[]]
        yield (lead + " ".join(lines[0])).rstrip(" ")
        yield from (" " * len(lead) + " ".join(line) for line in lines[1:])
        return
    indents.close()
    if block.kind == "paragraph":
        lines = _fill(block.words, layout.first_indent, layout.indent, layout.width)
        for index, line in enumerate(lines):
            indent = layout.indent if index else layout.first_indent
            yield _align_line(line, indent, layout, is_last=index == len(lines) - 1)
    else:
        lead = " " * layout.indent if block.kind == "line" else ""
        yield from (lead + line for line in block.words)


def _fill(words: Sequence[str], first: int, indent: int, width: int) -> list[list[str]]:
    """Fills lines greedily."""
    lines: list[list[str]] = []
    room = 0
    for unit in _unbreakable_units(words):
        columns = display_width(unit)
        if lines and columns < room:
            lines[-1].append(unit)
            room -= columns + 1
        else:
            room = width - (indent if lines else first) - columns
            lines.append([unit])
    return lines


def _unbreakable_units(words: Sequence[str]) -> Iterator[str]:
    """Yields the words; one that must not start a line comes together with the word before."""
    unit: list[str] = []
    for word in words:
        if unit and not starts_block(word):
            yield " ".join(unit)
            unit = []
        unit.append(word)
    if unit:
        yield " ".join(unit)


def _align_line(line: Sequence[str], indent: int, layout: TextLayout, *, is_last: bool) -> str:
    text, lead = " ".join(line), " " * indent
    room = max(0, layout.width - indent - display_width(text))
    if layout.align == "right":
        return lead + " " * room + text
    if layout.align == "center":
        return lead + " " * (room // 2) + text
    if layout.align == "justify" and not is_last and len(line) > 1:
        return lead + _justify(line, room)
    return lead + text


def _justify(line: Sequence[str], room: int) -> str:
    gap, wider_gaps = divmod(room, len(line) - 1)
    gaps = [" " * (1 + gap + (index < wider_gaps)) for index in range(len(line) - 1)]
    return "".join(word + spaces for word, spaces in zip(line, [*gaps, ""], strict=True))


def _join_paragraphs(blocks: Sequence[Block]) -> Iterator[Block]:
    """Joins consecutive paragraphs."""
    for kind, run in groupby(blocks, key=lambda block: block.kind):
        if kind != "paragraph":
            yield from run
        else:
            paragraphs = list(run)
            words = [word for paragraph in paragraphs for word in paragraph.words]
            yield Block("paragraph", words, blank_before=paragraphs[0].blank_before)
