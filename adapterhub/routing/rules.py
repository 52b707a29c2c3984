"""Rules that decide before the classifier: phrases and regular expressions."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple, Protocol

import regex

from adapterhub.errors import InvalidRequestError

MAX_PATTERN_CHARS = 500
PATTERN_TIMEOUT = 0.02
"""Seconds that one pattern may search one request; a pattern that times out does not match."""
_log = logging.getLogger(__name__)


class HasRules(Protocol):
    """A route, as far as its rules go."""

    @property
    def name(self) -> str: ...

    @property
    def phrases(self) -> tuple[str, ...]: ...

    @property
    def patterns(self) -> tuple[str, ...]: ...


class RuleMatch(NamedTuple):
    """A rule that matched a request."""

    route: str
    rule: str


def first_match(routes: Iterable[HasRules], text: str) -> RuleMatch | None:
    """The first rule that matches a request: routes in the given order, phrases before patterns."""
    for route in routes:
        for phrase in route.phrases:
            if _compiled(_phrase_pattern(phrase)).search(text):  # linear in the text, so no timeout
                return RuleMatch(route.name, phrase)
        for pattern in route.patterns:
            if _search(pattern, text):
                return RuleMatch(route.name, pattern)
    return None


def check_pattern(pattern: str) -> None:
    """Validates a regular expression.

    Raises:
        InvalidRequestError: It is too long or does not compile.
    """
    if len(pattern) > MAX_PATTERN_CHARS:
        raise InvalidRequestError(
            f"A routing pattern has {len(pattern)} characters; {MAX_PATTERN_CHARS} are allowed."
        )
    try:
        _compiled(pattern)
    except regex.error as error:
        raise InvalidRequestError(
            f"The routing pattern {pattern!r} is no regular expression: {error}."
        ) from error


def _phrase_pattern(phrase: str) -> str:
    words = r"\s+".join(regex.escape(word) for word in phrase.split())
    return rf"(?<!\w){words}(?!\w)"


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> regex.Pattern[str]:
    return regex.compile(pattern, regex.IGNORECASE)


def _search(pattern: str, text: str) -> bool:
    try:
        return _compiled(pattern).search(text, timeout=PATTERN_TIMEOUT) is not None
    except TimeoutError:
        _log.warning("A routing pattern took more than %s s and was skipped: %s", PATTERN_TIMEOUT, pattern)
        return False
