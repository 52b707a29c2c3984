"""What a card's routing rules have to be: few, short, and safe to match against any request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from adapterhub.errors import InvalidRequestError

MAX_RULES = 100
"""Phrases of one card, and its patterns."""
MAX_PHRASE_CHARS = 500


def check_rules(phrases: Sequence[str], patterns: Sequence[str]) -> None:
    """Checks the phrases and patterns that choose an adapter by rule.

    Raises:
        InvalidRequestError: There are too many, or one is too long, no regular expression, or not safe to match.
    """
    for problem in rule_problems(phrases, patterns):
        raise InvalidRequestError(
            problem,
            hint="Simplify the pattern, or use phrases: words that choose the adapter wherever they stand.",
        )


def rule_problems(phrases: Sequence[str], patterns: Sequence[str]) -> Iterator[str]:
    """Yields a sentence for each rule that cannot be used."""
    for kind, rules in (("phrases", phrases), ("patterns", patterns)):
        if len(rules) > MAX_RULES:
            yield f"There are {len(rules)} routing {kind}; {MAX_RULES} are allowed."
    for phrase in phrases[:MAX_RULES]:
        if not phrase.strip() or len(phrase) > MAX_PHRASE_CHARS:
            yield f"The routing phrase {phrase[:80]!r} must have 1 to {MAX_PHRASE_CHARS} characters."
    for pattern in patterns[:MAX_RULES]:
        if problem := _pattern_problem(pattern):
            yield f"The routing pattern {pattern[:80]!r} cannot be used: {problem}."


def _pattern_problem(pattern: str) -> str | None:
    from adapterhub._patterns import SafePattern  # `regex` is not loaded for cards without patterns

    try:
        SafePattern(pattern, ignore_case=True)
    except ValueError as error:
        return str(error)
    return None
