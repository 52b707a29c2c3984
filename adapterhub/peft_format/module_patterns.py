"""Patterns of module names, matched as PEFT matches them (`peft/utils/other.py`, `get_pattern_key`).

They come from downloaded files, and matching a regular expression can take exponential time (ReDoS). So a pattern may
have at most one group and two repetitions, and no repeated group, look-around or back-reference; and the number of
patterns that are more than a plain name is limited.
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
    """Compiles a pattern so that it `match`es module names that end with it, at a dot, as PEFT does."""
    return re.compile(rf"(.*\.)?({pattern})$")


def is_cheap(pattern: str) -> bool:
    """Whether a pattern can be matched safely: it is valid, and none that could take exponential time."""
    try:
        return bool(_check(pattern))
    except ValueError:
        return False


def _check(pattern: str) -> str:
    if _PLAIN.fullmatch(pattern) and len(pattern) <= MAX_MODULE_NAME:
        return pattern  # not compiled: a card may have hundreds, and cards must load fast
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
"""A module name, its last parts, or a regular expression for them."""
BoundedPatterns = AfterValidator(_check_all)
"""Validates that a mapping has at most `_MAX_EXPRESSIONS` keys that are more than a plain name."""
