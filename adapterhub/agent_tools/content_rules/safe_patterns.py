"""Untrusted regular expressions, with bounded time to compile and to match.

Matching ends at `regex`'s own `timeout`. Compiling has none: counted repetitions are expanded, and a few nested ones
take minutes and gigabytes. So their number and the product of their counts are bounded first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod

import regex

from adapterhub.agent_tools.deadline import Deadline, DeadlineExceededError

MAX_PATTERN = 500
"""Characters of a pattern."""
_MAX_COUNTED = 6
_MAX_EXPANSION = 20_000
_MIN_TIMEOUT = 0.01
_COUNTED = re.compile(r"\{\s*(\d*)\s*(?:,\s*(\d*)\s*)?\}")


class SafePattern:
    """An untrusted regular expression.

    Args:
        pattern: In the syntax of `regex`, a superset of Python's.

    Raises:
        ValueError: It is no regular expression, or too complicated.
    """

    def __init__(self, pattern: str) -> None:
        if len(pattern) > MAX_PATTERN:
            raise ValueError(f"the pattern has more than {MAX_PATTERN} characters")
        counts = [max(int(low[:9] or 0), int(high[:9] or 0), 1) for low, high in _COUNTED.findall(pattern)]
        if prod(counts) > _MAX_EXPANSION or sum(count > 1 for count in counts) > _MAX_COUNTED:
            raise ValueError("the pattern has too many or too large counted repetitions to be matched safely")
        try:
            self._compiled = regex.compile(pattern, cache_pattern=False)
        except (regex.error, RecursionError, OverflowError) as error:
            raise ValueError(f"the pattern is no regular expression: {error}") from error

    def search(self, text: str, deadline: Deadline, *, full: bool = False) -> int | None:
        """The offset of the first match; None if there is none.

        Args:
            text: The text.
            deadline: The time left.
            full: The whole text must match.

        Raises:
            DeadlineExceededError: The search did not end in time.
        """
        match = first_match(self._compiled, text, deadline, full=full)
        return match.start() if match else None


def first_match(
    pattern: regex.Pattern[str], text: str, deadline: Deadline, *, full: bool = False
) -> regex.Match[str] | None:
    """The first match in a text, or the match of the whole text if `full`.

    Raises:
        DeadlineExceededError: The search did not end in time.
    """
    find = pattern.fullmatch if full else pattern.search
    while True:
        deadline.check()
        try:
            return find(text, timeout=max(deadline.remaining, _MIN_TIMEOUT))
        except TimeoutError:
            # `regex` counts the processor time of all threads, so there may be time left for another try.
            continue


def all_matches(pattern: regex.Pattern[str], text: str, deadline: Deadline) -> Iterator[regex.Match[str]]:
    """Yields the matches in a text.

    Raises:
        DeadlineExceededError: The search did not end in time.
    """
    deadline.check()
    try:
        yield from deadline.limit(pattern.finditer(text, timeout=max(deadline.remaining, _MIN_TIMEOUT)))
    except TimeoutError as error:
        raise DeadlineExceededError from error
