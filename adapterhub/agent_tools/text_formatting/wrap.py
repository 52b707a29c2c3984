"""A text in lines of a given width.

What holds for every text: the characters that are no spaces stay, in their order; no line is wider than asked unless it
holds a single word, is a heading, table, quotation or code, or ends in words that must not begin a line; and formatting
what has been formatted changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from adapterhub.agent_tools.text_formatting.blocks import Block, opens_block, split_blocks
from adapterhub.agent_tools.text_formatting.width import display_width
from adapterhub.errors import ConfigError

Align = Literal["left", "right", "center", "justify"]


@dataclass(frozen=True)
class Layout:
    """How lines look.

    Attributes:
        width: Most columns of a line, the indent included.
        indent: Blanks before every line.
        first_line_indent: Blanks before the first line of a paragraph; as `indent` if None.
        align: Where the lines of a paragraph go; list items stay on the left.
        preserve_paragraphs: Keep paragraphs apart; otherwise those that follow each other become one.

    Raises:
        ConfigError: An indent leaves no column for the text.
    """

    width: int = 80
    indent: int = 0
    first_line_indent: int | None = None
    align: Align = "left"
    preserve_paragraphs: bool = True

    def __post_init__(self) -> None:
        if not 0 <= max(self.indent, self.first) < self.width:
            raise ConfigError(
                f"An indent of {max(self.indent, self.first)} does not fit a width of {self.width}."
            )

    @property
    def first(self) -> int:
        """Blanks before the first line of a paragraph."""
        return self.indent if self.first_line_indent is None else self.first_line_indent


def format_text(text: str, layout: Layout | None = None) -> str:
    """Wraps a text on words and aligns it; lists get hanging indents, fenced code stays as it is.

    Args:
        text: Plain text or Markdown.
        layout: How lines look; 80 columns on the left if not given.
    """
    layout = layout or Layout()
    blocks = split_blocks(text)
    if not layout.preserve_paragraphs:
        blocks = list(_joined(blocks))
    columns = _Columns(layout)
    lines: list[str] = []
    for block in blocks:
        lines += [""] if block.apart else []
        lines += _lines(block, layout, columns)
    return "\n".join(lines)


class _Columns:
    """Where the items of nested lists begin: an item stands below the text of the item that it belongs to."""

    def __init__(self, layout: Layout) -> None:
        self._left = layout.indent
        self._right = layout.indent + (layout.width - layout.indent) // 2  # half of a line is for the text
        self._open: list[tuple[int, int]] = []  # for each level: where it stood, where the level below goes

    def of(self, block: Block) -> int:
        """Where an item goes, given those before it."""
        while self._open and self._open[-1][0] >= block.column:
            self._open.pop()
        column = min(self._open[-1][1] if self._open else self._left, self._right)
        self._open.append((block.column, column + len(block.marker) + 1))
        return column

    def close(self) -> None:
        """The list is over."""
        self._open.clear()


def _lines(block: Block, layout: Layout, columns: _Columns) -> Iterator[str]:
    if block.kind == "item":
        column = columns.of(block)
        lead = " " * column + block.marker + " "
        lines = _fill(block.words, len(lead), len(lead), layout.width) or [[]]
        yield (lead + " ".join(lines[0])).rstrip(" ")
        yield from (" " * len(lead) + " ".join(line) for line in lines[1:])
        return
    columns.close()
    if block.kind == "paragraph":
        lines = _fill(block.words, layout.first, layout.indent, layout.width)
        for place, line in enumerate(lines):
            yield _aligned(line, layout.indent if place else layout.first, layout, place == len(lines) - 1)
    else:
        lead = " " * layout.indent if block.kind == "alone" else ""
        yield from (lead + line for line in block.words)


def _fill(words: Sequence[str], first: int, indent: int, width: int) -> list[list[str]]:
    """The words in lines, as many in each as fit."""
    lines: list[list[str]] = []
    room = 0
    for unit in _units(words):
        needed = display_width(unit)
        if lines and needed < room:
            lines[-1].append(unit)
            room -= needed + 1
        else:
            room = width - (indent if lines else first) - needed
            lines.append([unit])
    return lines


def _units(words: Sequence[str]) -> Iterator[str]:
    """The words, those that must not begin a line together with the word before."""
    unit: list[str] = []
    for word in words:
        if unit and not opens_block(word):
            yield " ".join(unit)
            unit = []
        unit.append(word)
    if unit:
        yield " ".join(unit)


def _aligned(line: Sequence[str], indent: int, layout: Layout, last: bool) -> str:
    text, lead = " ".join(line), " " * indent
    room = max(0, layout.width - indent - display_width(text))
    if layout.align == "right":
        return lead + " " * room + text
    if layout.align == "center":
        return lead + " " * (room // 2) + text
    if layout.align == "justify" and not last and len(line) > 1:
        return lead + _justified(line, room)
    return lead + text


def _justified(line: Sequence[str], room: int) -> str:
    each, more = divmod(room, len(line) - 1)
    gaps = [" " * (1 + each + (place < more)) for place in range(len(line) - 1)]
    return "".join(word + gap for word, gap in zip(line, [*gaps, ""], strict=True))


def _joined(blocks: Sequence[Block]) -> Iterator[Block]:
    """The blocks, paragraphs that follow each other as one."""
    for kind, run in groupby(blocks, key=lambda block: block.kind):
        if kind != "paragraph":
            yield from run
        else:
            paragraphs = list(run)
            words = [word for paragraph in paragraphs for word in paragraph.words]
            yield Block("paragraph", words, apart=paragraphs[0].apart)
