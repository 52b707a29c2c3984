"""How many columns a text takes where characters have equal width, as in a terminal or a code block."""

from __future__ import annotations

from wcwidth import width


def display_width(text: str) -> int:
    """The columns of a text: 2 for CJK and emoji, sequences joined into one emoji included, 0 for combining marks.

    Control characters count nothing. Source: Unicode's East Asian Width and emoji data, through `wcwidth`.
    """
    return len(text) if text.isascii() and text.isprintable() else width(text, control_codes="ignore")
