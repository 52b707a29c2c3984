"""Patterns of module names, matched as PEFT matches them (`peft/utils/other.py`, `get_pattern_key`).

They come from downloaded files, and matching a regular expression can take exponential time (ReDoS). So a pattern may
have at most one group and two repetitions, and no repeated group, look-around or back-reference; and the number of
patterns that are more than a plain name is limited. Plain names are looked up, not tried one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Generic, TypeAlias, TypeVar

from pydantic import AfterValidator

MAX_MODULE_NAME = 160
_MAX_EXPRESSIONS = 64
_PLAIN = re.compile(r"(?:[\w^$-]|\\?\.)+")
_COSTLY = re.compile(r"\)[*+?{]|\(\?|\\[0-9]|(?:[*+?{].*){3}|(?:\(.*){2}", re.DOTALL)
_DOT = re.compile(r"\.")
_MAX_SHAPES = 1024
_Dots: TypeAlias = tuple[int, ...]
T = TypeVar("T")
_Patterns = TypeVar("_Patterns", bound=dict[str, Any])


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compiles a pattern so that it `match`es module names that end with it, at a dot, as PEFT does."""
    return re.compile(rf"(.*\.)?({pattern})$")


def are_cheap(patterns: Sequence[str]) -> bool:
    """Whether patterns can be matched safely: few, all of them valid, and none that could take exponential time."""
    try:
        for pattern in patterns[: _MAX_EXPRESSIONS + 1]:
            _check(pattern)
    except ValueError:
        return False
    return len(patterns) <= _MAX_EXPRESSIONS


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
    if len(patterns) > _MAX_SHAPES and len(set(map(_shape, patterns))) > _MAX_SHAPES:
        raise ValueError(f"the patterns have their dots in more than {_MAX_SHAPES} different places")
    if sum(not _PLAIN.fullmatch(pattern) for pattern in patterns) > _MAX_EXPRESSIONS:
        raise ValueError(f"more than {_MAX_EXPRESSIONS} of the patterns are regular expressions")
    return patterns


Pattern = Annotated[str, AfterValidator(_check)]
"""A module name, its last parts, or a regular expression for them."""
BoundedPatterns = AfterValidator(_check_all)
"""Validates that a mapping has at most `_MAX_EXPRESSIONS` keys that are more than a plain name."""


class PatternTable(Generic[T]):
    """Values by patterns of module names; that of the first pattern that matches counts.

    There may be tens of thousands of plain names, one for each expert of each layer. A dot in one stands for any
    character, so they are looked up by their length and the positions of their dots.

    Args:
        patterns: Pattern -> value.
    """

    def __init__(self, patterns: Mapping[str, T]) -> None:
        self._values = tuple(patterns.values())
        self._expressions: list[tuple[int, re.Pattern[str]]] = []
        self._plain: dict[int, dict[_Dots, dict[str, int]]] = {}
        for index, pattern in enumerate(patterns):
            if _PLAIN.fullmatch(pattern):
                name, dots = _parse(pattern)
                length = len(name.removeprefix("^"))
                self._plain.setdefault(length, {}).setdefault(dots, {}).setdefault(name, index)
            else:
                self._expressions.append((index, compile_pattern(pattern)))

    def get(self, module: str, default: T) -> T:
        """The value of the first pattern that matches a module's name."""
        indices = [index for index, expression in self._expressions if expression.match(module)]
        starts = [0, *(match.end() for match in _DOT.finditer(module))]
        for start in starts:
            suffix = module[start:]
            for dots, names in self._plain.get(len(suffix), {}).items():
                name = _with_dots(suffix, dots)
                indices += [
                    names[key] for key in (name, *([f"^{name}"] if not start else [])) if key in names
                ]
        return self._values[min(indices)] if indices else default


def _parse(pattern: str) -> tuple[str, _Dots]:
    """A plain pattern as a name, with a `^` if it is anchored, and the positions of the dots that match anything."""
    anchor = "^" if pattern.startswith("^") else ""
    name = pattern.lstrip("^").rstrip("$").replace(r"\.", "\0")
    dots = tuple(match.start() for match in _DOT.finditer(name))
    return anchor + name.replace("\0", "."), dots


def _shape(pattern: str) -> tuple[int, _Dots]:
    name, dots = _parse(pattern)
    return len(name), dots


def _with_dots(name: str, dots: _Dots) -> str:
    characters = list(name)
    for position in dots:
        characters[position] = "."
    return "".join(characters)
