"""Checking the keyword arguments of a call."""

from __future__ import annotations

from collections.abc import Iterable, Set

from adapterhub.errors import InvalidRequestError


def check_arguments(names: Iterable[str], known: Set[str], owner: str, extra: Set[str] = frozenset()) -> None:
    """Refuses unknown arguments.

    Args:
        names: The arguments of a call.
        known: The arguments that there are.
        owner: What is called, as in "a chat model"; for the message.
        extra: Further arguments that the hint lists.

    Raises:
        InvalidRequestError: One is unknown.
    """
    unknown = set(names) - known
    if unknown:
        raise InvalidRequestError(
            f"{', '.join(sorted(unknown))}: no such argument of {owner}.",
            hint=f"Known: {', '.join(sorted(known | extra))}.",
        )
