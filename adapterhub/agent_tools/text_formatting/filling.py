"""Filling lines with words, greedily.

A unit is what no line break may divide: a word, a part of a Chinese or Japanese one, or a word together with following
words that must not begin a line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from adapterhub.agent_tools.text_formatting.blocks import Block, starts_block
from adapterhub.agent_tools.text_formatting.east_asian import is_adjacent, is_joined, split_east_asian
from adapterhub.agent_tools.text_formatting.width import display_width

HARD_BREAK = "  "
_UNBOUNDED = 10**9


class Unit(NamedTuple):
    """A unit, and the space before it within a line.

    Attributes:
        text: The unit.
        width: Its columns.
        gap: The space before it.
        is_optional_gap: The space stands between two East Asian characters, where a line break stands for no space.
    """

    text: str
    width: int
    gap: str = ""
    is_optional_gap: bool = False


Line = list[Unit]


def fill_block(block: Block, first: int, room: int, short: int) -> list[list[Line]]:
    """Fills lines with the words of a block; a list of lines for each part between line breaks that are kept.

    Kept are the hard breaks of Markdown, and breaks after a short line: where the next word would have had room within
    `short` columns, the break was not made by wrapping.

    Args:
        block: A paragraph or list item.
        first: The columns of the first line.
        room: The columns of other lines.
        short: Columns of a short line; at most `first` and `room`, so that formatted text stays as it is.
    """
    parts: list[list[Line]] = []
    filler, narrow = _Filler(first, room), min(first, room)
    above: Sequence[str] = ()
    for start, end in zip([0, *block.breaks], [*block.breaks, len(block.words)], strict=True):
        words = block.words[start:end]
        gap = "" if start and is_adjacent(block.words[start - 1], words[0]) else " "
        next_width = len(gap) + _first_width(words, narrow, _mark(block, end))
        is_short = filler.width + next_width <= short and _width(above) + next_width <= short
        if start and (start in block.hard_breaks or is_short):
            filler.append(_mark(block, start))
            parts.append(filler.finish())
            filler, gap = _Filler(room, room), " "
        for word in words:
            if not filler.takes(word, narrow):
                parts.append(filler.finish())
                filler = _Filler(room, room)
            filler.add(word, gap)
            gap = " "
        above = words
    return [*parts, filler.finish()]


def _mark(block: Block, index: int) -> str:
    """What marks a hard break before a word, if there is one and its mark is white space."""
    return HARD_BREAK if block.hard_breaks.get(index) == "spaces" else ""


class _Filler:
    """The lines so far; the last unit is not placed yet, since it may grow."""

    def __init__(self, first: int, room: int) -> None:
        self._lines: list[Line] = []
        self._left, self._first, self._room = 0, first, room
        self._parts: list[str] = []
        self._gap, self._is_optional_gap = "", False
        self._end = ""
        self._is_glued = False

    @property
    def has_lines(self) -> bool:
        """Whether a unit is placed."""
        return bool(self._lines)

    @property
    def width(self) -> int:
        """The columns of the last line."""
        unit = self._unit()
        if not self._lines or not self._fits(unit):
            return unit.width
        return (self._room if len(self._lines) > 1 else self._first) - self._left + len(unit.gap) + unit.width

    def takes(self, word: str, room: int) -> bool:
        """Whether a word can follow in the same part.

        A backslash at the end of a line would make the break a hard one. So the next word is kept with it, or, if they
        have no room on one line, the break is a hard one.
        """
        if not self._end.endswith("\\") or starts_block(word):
            return True
        self._is_glued = self._unit().width + 1 + display_width(split_east_asian(word)[0]) <= room
        return self._is_glued

    def add(self, word: str, gap: str = " ") -> None:
        """Adds a word."""
        head, *tail = split_east_asian(word)
        if not self._parts:
            self._begin(head, "")
        elif self._is_glued or (gap and starts_block(word)) or is_joined(self._end, word):
            self._parts.append(gap + head)
        else:
            self._begin(head, gap, is_optional_gap=bool(gap) and is_adjacent(self._end, word))
        for part in tail:
            self._begin(part, "")
        self._end, self._is_glued = word, False

    def append(self, text: str) -> None:
        """Makes the last unit longer."""
        self._parts.append(text)

    def finish(self) -> list[Line]:
        """Returns the lines."""
        if self._parts:
            self._place()
        return self._lines

    def _begin(self, text: str, gap: str, *, is_optional_gap: bool = False) -> None:
        if self._parts:
            self._place()
        self._parts, self._gap, self._is_optional_gap = [text], gap, is_optional_gap

    def _unit(self) -> Unit:
        text = "".join(self._parts)
        return Unit(text, display_width(text), self._gap, self._is_optional_gap)

    def _fits(self, unit: Unit) -> bool:
        return unit.width + (0 if unit.is_optional_gap else len(unit.gap)) <= self._left

    def _place(self) -> None:
        unit = self._unit()
        if self._lines and self._fits(unit):
            if unit.width + len(unit.gap) > self._left:
                # A break here would be read as no space, and then the unit would fit: the space has to go.
                unit = unit._replace(gap="")
            self._lines[-1].append(unit)
            self._left -= unit.width + len(unit.gap)
        else:
            self._left = (self._room if self._lines else self._first) - unit.width
            self._lines.append([unit])


def _width(words: Sequence[str]) -> int:
    """The columns of a line."""
    filler = _Filler(_UNBOUNDED, _UNBOUNDED)
    for word in words:
        filler.add(word)
    return filler.width


def _first_width(words: Sequence[str], room: int, mark: str) -> int:
    """The columns of the first unit of some words, with the mark of the hard break after them."""
    filler = _Filler(0, 0)
    for word in words:
        if not filler.takes(word, room):
            break
        filler.add(word)
        if filler.has_lines:
            break
    else:
        filler.append(mark)
    return filler.finish()[0][0].width
