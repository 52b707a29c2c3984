"""Bounds on the parts of a JSON body: its size alone bounds neither the time to parse nor that to check it.

Both hold the interpreter's lock, and so the event loop: an empty list takes a third of a microsecond to parse, and
8 MiB are three million.
"""

from __future__ import annotations

from typing import Any

from adapterhub.server.errors import FieldError

_MAX_PARTS = 10_000
"""Objects and lists of a body, and items of each. To check one, or note what is wrong with it, takes microseconds."""
_MAX_NAMES = 50_000
"""Names of fields."""
_MAX_VALUES = 1 << 18
"""Values; token ids may be as many, which take 10 ms to parse."""
_TOKEN_IDS = ("prompt", "tokens")


def check_text_size(content: bytes) -> None:
    """Checks the parts of a body before it is parsed, in a few milliseconds.

    Args:
        content: The body.

    Raises:
        FieldError: There are too many.
    """
    # Most bodies have few parts even if what is in their strings is counted too.
    if _has_too_many_parts(content) and _has_too_many_parts_outside_strings(content):
        raise FieldError(
            f"The body has more than {_MAX_PARTS:,} objects and lists, {_MAX_NAMES:,} names or "
            f"{_MAX_VALUES:,} values.",
            None,
        )


def check_size(body: dict[str, Any]) -> None:
    """Checks the parts of a body that is parsed; lists of token ids are left out, and read up to a wrong one.

    Args:
        body: The body.

    Raises:
        FieldError: There are too many.
    """
    found = 0
    unread: list[Any] = [{name: each for name, each in body.items() if name not in _TOKEN_IDS}]
    while unread:
        one, found = unread.pop(), found + 1
        if found > _MAX_PARTS or len(one) > _MAX_PARTS:
            raise FieldError(
                f"The body has more than {_MAX_PARTS:,} objects and lists, or one with more items than that.",
                None,
            )
        inner = one.values() if isinstance(one, dict) else one
        unread += [each for each in inner if isinstance(each, dict | list)]


def _has_too_many_parts(text: bytes) -> bool:
    return (
        text.count(b"{") + text.count(b"[") > _MAX_PARTS
        or text.count(b":") > _MAX_NAMES
        or text.count(b",") > _MAX_VALUES
    )


def _has_too_many_parts_outside_strings(content: bytes) -> bool:
    quoted = content.replace(b"\\\\", b"").replace(b'\\"', b"")
    if quoted.count(b'"') > 2 * (_MAX_NAMES + _MAX_VALUES):
        return True
    return _has_too_many_parts(b"".join(quoted.split(b'"')[::2]))
