"""Rules that decide before the classifier is asked: phrases and regular expressions."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple, Protocol

import regex

from adapterhub.errors import RoutingError

LONGEST_PATTERN = 500
TIMEOUT = 0.02
"""Seconds that one pattern may look at one request; one that needs more does not match."""
_log = logging.getLogger(__name__)


class Ruled(Protocol):
    """What has rules: a route."""

    @property
    def name(self) -> str: ...

    @property
    def phrases(self) -> tuple[str, ...]: ...

    @property
    def patterns(self) -> tuple[str, ...]: ...


class Match(NamedTuple):
    """A rule that applies."""

    route: str
    rule: str


def first_match(routes: Iterable[Ruled], text: str) -> Match | None:
    """The first rule that applies to a request; routes in the order of their names, phrases before patterns."""
    for route in routes:
        for phrase in route.phrases:
            if _compiled(_of_phrase(phrase)).search(text):  # takes no longer than the text is long
                return Match(route.name, phrase)
        for pattern in route.patterns:
            if _found(pattern, text):
                return Match(route.name, pattern)
    return None


def check_pattern(pattern: str) -> None:
    """Refuses a pattern that cannot be used.

    Raises:
        RoutingError: It is too long, or no regular expression.
    """
    if len(pattern) > LONGEST_PATTERN:
        raise RoutingError(f"A routing pattern has {len(pattern)} characters; {LONGEST_PATTERN} are allowed.")
    try:
        _compiled(pattern)
    except regex.error as error:
        raise RoutingError(f"The routing pattern {pattern!r} is no regular expression: {error}.") from error


def _of_phrase(phrase: str) -> str:
    words = r"\s+".join(regex.escape(word) for word in phrase.split())
    return rf"(?<!\w){words}(?!\w)"


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> regex.Pattern[str]:
    return regex.compile(pattern, regex.IGNORECASE)


def _found(pattern: str, text: str) -> bool:
    try:
        return _compiled(pattern).search(text, timeout=TIMEOUT) is not None
    except TimeoutError:
        _log.warning("A routing pattern took more than %s s and was passed over: %s", TIMEOUT, pattern)
        return False
