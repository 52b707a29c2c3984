"""Regular expressions of strangers: they take a bounded time to compile and to match.

Matching is stopped by `regex`'s own `timeout`. Compiling is not: counted repetitions are written out, and a few nested
ones take minutes and gigabytes. So their number and the product of their counts are bounded before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod

import regex

from adapterhub.agent_tools.content_rules.clock import Clock, OutOfTimeError

MAX_PATTERN = 500
_MAX_COUNTS = 6
_MAX_WRITTEN_OUT = 20_000
_COUNT = re.compile(r"\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}")


class Pattern:
    """A regular expression that may be hostile.

    Args:
        pattern: In the syntax of `regex`, which has Python's and more.

    Raises:
        ValueError: It is no regular expression, or too complicated.
    """

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MAX_PATTERN:
            raise ValueError(f"the pattern has more than {MAX_PATTERN} characters")
        counts = [max(int(low[:9] or 0), int(high[:9] or 0), 1) for low, high in _COUNT.findall(pattern)]
        if prod(counts) > _MAX_WRITTEN_OUT or sum(count > 1 for count in counts) > _MAX_COUNTS:
            raise ValueError("the pattern has too many or too large counted repetitions to be matched safely")
        try:
            self._compiled = regex.compile(pattern, cache_pattern=False)
        except (regex.error, RecursionError, OverflowError) as error:
            raise ValueError(f"the pattern is no regular expression: {error}") from error

    def find(self, text: str, clock: Clock, *, whole: bool = False) -> int | None:
        """Where the pattern matches first; None if nowhere.

        Raises:
            OutOfTimeError: That could not be found out in time.
        """
        found = first_match(self._compiled, text, clock, whole=whole)
        return found.start() if found else None


def first_match(
    pattern: regex.Pattern[str], text: str, clock: Clock, *, whole: bool = False
) -> regex.Match[str] | None:
    """The first match in a text, or that of the whole text.

    Raises:
        OutOfTimeError: It was not found in time.
    """
    clock.check()
    find = pattern.fullmatch if whole else pattern.search
    try:
        return find(text, timeout=max(clock.left, 1e-4))
    except TimeoutError as error:
        raise OutOfTimeError from error


def all_matches(pattern: regex.Pattern[str], text: str, clock: Clock) -> Iterator[regex.Match[str]]:
    """The matches in a text, one after the other.

    Raises:
        OutOfTimeError: They were not found in time.
    """
    clock.check()
    try:
        yield from pattern.finditer(text, timeout=max(clock.left, 1e-4))
    except TimeoutError as error:
        raise OutOfTimeError from error
