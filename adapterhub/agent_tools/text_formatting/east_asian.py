"""Where Chinese and Japanese text may be broken, which has no spaces: the part of UAX 14 between East Asian characters.

A break between two of them needs no space when lines are joined again, so that breaking and joining lose nothing. For
the same reason text is not broken between them and other letters. Korean is broken at its spaces. `uniseg` has all of
UAX 14. It takes 80 microseconds for each character, 8 s for the longest text; the tests compare with it.
"""

from __future__ import annotations

import regex

_EAST_ASIAN = (
    r"[[\p{East_Asian_Width=W}\p{East_Asian_Width=F}\p{East_Asian_Width=H}]"
    r"--[\p{Hangul}\p{Extended_Pictographic}\p{Regional_Indicator}\p{Emoji_Modifier}\s]]"
)
_NOT_BEFORE = (
    "CL",
    "CP",
    "EX",
    "IS",
    "SY",
    "NS",
    "CJ",
    "IN",
    "PO",
    "CM",
    "BA",
    "HY",
    "QU",
    "GL",
    "WJ",
    "ZWJ",
)
_NOT_AFTER = ("OP", "PR", "QU", "BB", "GL", "WJ", "ZWJ")


def _without(classes: tuple[str, ...]) -> str:
    excluded = "".join(r"\p{Line_Break=" + name + "}" for name in classes)
    return f"[{_EAST_ASIAN}--[{excluded}]]"


_IS_EAST_ASIAN = regex.compile(rf"(?V1){_EAST_ASIAN}")
_BREAK = regex.compile(rf"(?V1)(?<={_without(_NOT_AFTER)})(?={_without(_NOT_BEFORE)})")


def split_east_asian(word: str) -> list[str]:
    """The parts of a word, between which a line may end."""
    if word.isascii():
        return [word]
    ends = [match.start() for match in _BREAK.finditer(word)]
    return [word[start:end] for start, end in zip([0, *ends], [*ends, len(word)], strict=True)]


def is_adjacent(left: str, right: str) -> bool:
    """Whether East Asian characters meet between two words: there a line break stands for no space."""
    return _is_east_asian(left[-1]) and _is_east_asian(right[0])


def may_break(left: str, right: str) -> bool:
    """Whether a line may end between two words at which East Asian characters meet."""
    return _BREAK.search(left[-1] + right[0]) is not None


def is_joined(left: str, right: str) -> bool:
    """Whether a line break between two words has to go: East Asian characters meet that it may not divide."""
    return is_adjacent(left, right) and not may_break(left, right)


def _is_east_asian(character: str) -> bool:
    return not character.isascii() and _IS_EAST_ASIAN.match(character) is not None
