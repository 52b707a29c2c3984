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

from adapterhub.agent_tools.text_formatting.blocks import Block, parse_blocks
from adapterhub.agent_tools.text_formatting.filling import Line, fill_block
from adapterhub.errors import ToolError

Align = Literal["left", "right", "center", "justify"]
_SHORT = 50
"""Columns: prose is wrapped to more, so a line break that leaves more room than the next word needs is meant."""


@dataclass(frozen=True)
class TextLayout:
    """Width, indents and alignment of a text.

    Attributes:
        width: Maximum columns of a line, indent included.
        indent: Spaces before every line.
        first_line_indent: Spaces before the first line of a paragraph; `indent` if None.
        align: Alignment of paragraphs; list items stay on the left.
        preserve_paragraphs: Keep paragraphs separate, and line breaks after short lines; otherwise consecutive ones
            are joined.

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
    """Wraps a text and aligns it; list items get hanging indents, code is not changed.

    Line breaks that are not wrapping stay: Markdown's hard breaks, those after short lines, as in addresses, and those
    before labels such as `User:`.

    Args:
        text: Plain text or Markdown.
        layout: Width, indents and alignment; 80 columns on the left if not given.
    """
    layout = layout or TextLayout()
    is_aligned = layout.align in ("right", "center")
    blocks = parse_blocks(text, None if is_aligned else (layout.first_indent, layout.indent))
    if not layout.preserve_paragraphs:
        blocks = list(_join_paragraphs(blocks))
    items = _ItemIndents(layout, nests_paragraphs=layout.preserve_paragraphs and not is_aligned)
    lines: list[str] = []
    for block in blocks:
        lines += [""] if block.blank_before else []
        lines += _lines(block, layout, items)
    return "\n".join(lines)


class _ItemIndents:
    """The indents of nested list items: an item is aligned with the text of its parent item.

    Args:
        layout: The layout.
        nests_paragraphs: Whether a paragraph that is indented as an item's text belongs to the item.
    """

    def __init__(self, layout: TextLayout, *, nests_paragraphs: bool) -> None:
        self._left, self._paragraph = layout.indent, layout.first_indent
        self._max = layout.indent + (layout.width - layout.indent) // 2  # half of a line is for the text
        self._nests_paragraphs = nests_paragraphs
        # For each level: its column in the source, that of its text, and the indent of its text.
        self._open: list[tuple[int, int, int]] = []

    def add(self, block: Block) -> int:
        """Returns the indent of the next item."""
        while self._open and self._open[-1][0] >= block.column:
            self._open.pop()
        indent = min(self._open[-1][2] if self._open else self._left, self._max)
        marker = len(block.marker) + 1
        self._open.append((block.column, block.column + marker, indent + marker))
        return indent

    def of_paragraph(self, block: Block) -> int | None:
        """The indent of a paragraph within an item; None for one that ends the list."""
        if self._nests_paragraphs and block.blank_before and block.column != self._paragraph:
            while self._open and self._open[-1][1] > block.column:
                self._open.pop()
            if self._open and self._open[-1][2] != self._paragraph:
                return self._open[-1][2]
        self.close()
        return None

    def close(self) -> None:
        """Ends the list."""
        self._open.clear()


def _lines(block: Block, layout: TextLayout, items: _ItemIndents) -> Iterator[str]:
    if block.kind == "item":
        lead = " " * items.add(block) + block.marker + " "
        yield from _hanging_lines(block, lead, layout)
    elif block.kind == "paragraph":
        indent = items.of_paragraph(block)
        if indent is None:
            yield from _paragraph_lines(block, layout)
        else:
            yield from _hanging_lines(block, " " * indent, layout)
    else:
        items.close()
        lead = " " * layout.indent if block.kind == "line" else ""
        yield from (lead + line for line in block.words)


def _hanging_lines(block: Block, lead: str, layout: TextLayout) -> Iterator[str]:
    room = layout.width - len(lead)
    if not block.words:
        yield lead.rstrip(" ")
        return
    for part in fill_block(block, room, room, _short(room, layout)):
        for line in part:
            yield lead + _text(line)
            lead = " " * len(lead)


def _paragraph_lines(block: Block, layout: TextLayout) -> Iterator[str]:
    first, room = layout.width - layout.first_indent, layout.width - layout.indent
    indent = layout.first_indent
    for part in fill_block(block, first, room, _short(min(first, room), layout)):
        for index, line in enumerate(part):
            yield _align_line(line, indent, layout, is_last=index == len(part) - 1)
            indent = layout.indent


def _short(room: int, layout: TextLayout) -> int:
    return min(room, _SHORT) if layout.preserve_paragraphs else 0


def _text(line: Line) -> str:
    return "".join(unit.text if not index else unit.gap + unit.text for index, unit in enumerate(line))


def _align_line(line: Line, indent: int, layout: TextLayout, *, is_last: bool) -> str:
    lead = " " * indent
    width = sum(unit.width + len(unit.gap) for unit in line) - len(line[0].gap)
    room = max(0, layout.width - indent - width)
    if layout.align == "right":
        return lead + " " * room + _text(line)
    if layout.align == "center":
        return lead + " " * (room // 2) + _text(line)
    if layout.align == "justify" and not is_last:
        return lead + _text(_justify(line, room))
    return lead + _text(line)


def _justify(line: Line, room: int) -> Line:
    gaps = sum(bool(unit.gap) for unit in line[1:])
    gap, wider_gaps = divmod(room, gaps) if gaps else (0, 0)
    justified = line[:1]
    for unit in line[1:]:
        if unit.gap:
            unit = unit._replace(gap=" " * (1 + gap + (wider_gaps > 0)))
            wider_gaps -= 1
        justified.append(unit)
    return justified


def _join_paragraphs(blocks: Sequence[Block]) -> Iterator[Block]:
    """Joins consecutive paragraphs."""
    for kind, run in groupby(blocks, key=lambda block: block.kind):
        if kind != "paragraph":
            yield from run
            continue
        joined, *paragraphs = run
        for paragraph in paragraphs:
            ends = [*paragraph.breaks, len(paragraph.words)]
            for start, end in zip([0, *paragraph.breaks], ends, strict=True):
                joined.continue_with(paragraph.words[start:end], paragraph.hard_breaks.get(start))
        yield joined
