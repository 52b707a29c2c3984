"""Patterns of module names, matched as PEFT matches them (`peft/utils/other.py`, `get_pattern_key`).

They come with downloaded files, and a regular expression can keep Python's matcher busy for years. So an expression
may hold one group and two repetitions at most, no repeated group, look-around or back-reference; and few patterns may
be more than a plain name.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator

MAX_MODULE_NAME = 160
_MAX_EXPRESSIONS = 64
_PLAIN = re.compile(r"(?:[\w^$-]|\\?\.)+")
_COSTLY = re.compile(r"\)[*+?{]|\(\?|\\[0-9]|(?:[*+?{].*){3}|(?:\(.*){2}", re.DOTALL)
_Patterns = TypeVar("_Patterns", bound=dict[str, Any])


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """What `match`es the modules that a pattern means: those whose name ends with it, after a dot or as a whole."""
    return re.compile(rf"(.*\.)?({pattern})$")


def _check(pattern: str) -> str:
    if _PLAIN.fullmatch(pattern) and len(pattern) <= MAX_MODULE_NAME:
        return pattern  # most are, and compiling hundreds of them would make a card slow to read
    if len(pattern) > MAX_MODULE_NAME or _COSTLY.search(pattern.replace("(?:", "(")):
        raise ValueError("the pattern is too complicated to be matched safely")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError("the pattern is not a regular expression") from error
    return pattern


def _check_all(patterns: _Patterns) -> _Patterns:
    if sum(not _PLAIN.fullmatch(pattern) for pattern in patterns) > _MAX_EXPRESSIONS:
        raise ValueError(f"more than {_MAX_EXPRESSIONS} of the patterns are regular expressions")
    return patterns


Pattern = Annotated[str, AfterValidator(_check)]
"""A module's name, or the end of it, or a regular expression for it."""
FewPatterns = AfterValidator(_check_all)
"""Bounds how many keys of a mapping are more than a plain name."""
