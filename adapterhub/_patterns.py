"""Untrusted regular expressions, with bounded time and memory to compile and to match.

All patterns that a user, a schema or a card brings pass here. Matching ends at `regex`'s own `timeout`. Compiling has
none: counted repetitions are expanded, and a few nested ones take minutes and gigabytes. So the expanded size is
bounded first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from math import prod

import regex

from adapterhub._deadline import Deadline

MAX_PATTERN = 500
"""Characters of a pattern."""
_MAX_EXPANSION = 20_000
"""Parts of a pattern after its repetitions were expanded; each takes about 250 bytes and 0.3 microseconds."""
_MIN_TIMEOUT = 0.01
_COUNTED = re.compile(r"([)}]\s*)?\{\s*(\d+)\s*(?:,\s*\d*\s*)?\}")


class SafePattern:
    """An untrusted regular expression.

    Args:
        pattern: In the syntax of `regex`, a superset of Python's.
        ignore_case: Whether upper and lower case are the same.

    Raises:
        ValueError: It is no regular expression, or too complicated.
    """

    def __init__(self, pattern: str, *, ignore_case: bool = False) -> None:
        if len(pattern) > MAX_PATTERN:
            raise ValueError(f"the pattern has more than {MAX_PATTERN} characters")
        if _expanded_size(pattern) > _MAX_EXPANSION:
            raise ValueError("the pattern has too many or too large counted repetitions to be matched safely")
        flags = regex.IGNORECASE if ignore_case else 0
        try:
            self._compiled = regex.compile(pattern, flags, cache_pattern=False)
        except (regex.error, RecursionError, OverflowError, ValueError) as error:
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


def _expanded_size(pattern: str) -> int:
    """The number of parts after expansion, or more: `regex` makes as many copies as a repetition has at least.

    Only a repeated group contains other repetitions. In verbose mode a comment may stand between it and its count.
    """
    is_verbose = "#" in pattern
    counts = [(group or is_verbose, max(int(low[:9]), 1)) for group, low in _COUNTED.findall(pattern)]
    copies = prod(count for is_group, count in counts if is_group)
    return copies * (len(pattern) + sum(count for is_group, count in counts if not is_group))


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
    position = 0
    while True:
        deadline.check()
        try:
            matches = pattern.finditer(text, position, timeout=max(deadline.remaining, _MIN_TIMEOUT))
            for match in deadline.limit(matches):
                yield match
                position = match.end()
            return
        except TimeoutError:
            continue  # as in `first_match`
