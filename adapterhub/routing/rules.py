"""Rules that decide before the classifier: phrases and regular expressions."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple, Protocol

import regex

from adapterhub._deadline import Deadline, DeadlineExceededError
from adapterhub._patterns import SafePattern
from adapterhub.registry.routing_rules import MAX_RULES, rule_problems

ROUTE_SECONDS = 0.02
"""Processor time that the patterns of one route may search one request."""
RULES_SECONDS = 0.1
"""Processor time that all patterns may search one request."""
_MAX_COMPILED = 8192
_NEVER = regex.compile(r"(?!)")
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
    """The first rule that matches a request: routes in the given order, phrases before patterns.

    Rules that cannot be used are left out: cards and saved routers can be written by other means than the registry.
    Patterns that would take too long are left out for this request.
    """
    seconds = RULES_SECONDS
    for route in routes:
        for phrase in route.phrases[:MAX_RULES]:
            if _compiled_phrase(phrase).search(text):  # linear in the text, so no timeout
                return RuleMatch(route.name, phrase)
        if route.patterns and seconds > 0:
            # The first request compiles the patterns, which is not a part of its time.
            compiled = [(pattern, _compiled_pattern(pattern)) for pattern in route.patterns[:MAX_RULES]]
            deadline = Deadline(min(ROUTE_SECONDS, seconds))
            started = deadline.remaining
            if pattern := _first_pattern(route.name, compiled, text, deadline):
                return RuleMatch(route.name, pattern)
            seconds -= started - deadline.remaining
    return None


def _first_pattern(
    name: str, patterns: Iterable[tuple[str, SafePattern | None]], text: str, deadline: Deadline
) -> str | None:
    for pattern, compiled in patterns:
        try:
            if compiled and compiled.search(text, deadline) is not None:
                return pattern
        except DeadlineExceededError:
            _log.warning(
                "The routing patterns of %s take too long for this request; skipped from %.80r on",
                name,
                pattern,
            )
            break
    return None


@lru_cache(maxsize=_MAX_COMPILED)
def _compiled_phrase(phrase: str) -> regex.Pattern[str]:
    if problem := next(rule_problems([phrase], []), None):
        _log.warning("A routing rule is left out: %s", problem)
        return _NEVER
    words = r"\s+".join(regex.escape(word) for word in phrase.split())
    return regex.compile(rf"(?<!\w){words}(?!\w)", regex.IGNORECASE, cache_pattern=False)


@lru_cache(maxsize=_MAX_COMPILED)
def _compiled_pattern(pattern: str) -> SafePattern | None:
    try:
        return SafePattern(pattern, ignore_case=True)
    except ValueError as error:
        _log.warning("The routing pattern %.80r is left out: %s", pattern, error)
        return None
