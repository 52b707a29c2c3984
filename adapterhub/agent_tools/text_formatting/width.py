"""The number of columns that a text takes in a monospaced font, as in a terminal or a code block."""

from __future__ import annotations

from wcwidth import width


def display_width(text: str) -> int:
    """The columns of a text: 2 for CJK and emoji, joined sequences of emoji included, 0 for combining marks.

    Control characters do not count. Source: Unicode's East Asian Width and emoji data, through `wcwidth`.
    """
    return len(text) if text.isascii() and text.isprintable() else width(text, control_codes="ignore")
