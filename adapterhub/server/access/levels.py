"""Which paths need which key. A path that is not listed here needs an admin's: one that was forgotten is closed."""

from __future__ import annotations

from enum import IntEnum

from adapterhub.server.routes.not_implemented import NOT_IMPLEMENTED


class Level(IntEnum):
    """What a caller has to be to call a path."""

    OPEN = 0
    """Anybody: probes, and the page's own files, which hold nothing of the registry."""
    INFERENCE = 1
    """The holder of any key."""
    OPERATOR = 2
    """The holder of a key without a list of adapters: the answer names all of them."""
    ADMIN = 3
    """The holder of an admin's key."""


_OPEN = frozenset({"/", "/health", "/ping", "/ready"})
_OPEN_FOLDER = "/page/"
_INFERENCE = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/models",
        "/tokenize",
        "/detokenize",
        "/load",
        "/version",
        "/openapi.json",
        "/v1/adapterhub/route",
        "/v1/adapterhub/stats",
    }
)
_ADAPTERS = "/v1/adapterhub/adapters"
_READING = ("/v1/models/", f"{_ADAPTERS}/")
_OPERATOR = frozenset({"/metrics"})


def level_of(method: str, path: str) -> Level:
    """The level that a request needs.

    Args:
        method: The HTTP method, upper case.
        path: The path without the query.
    """
    if path in _OPEN or path.startswith(_OPEN_FOLDER):
        return Level.OPEN
    if path in _INFERENCE or _is_refused(path):
        return Level.INFERENCE
    if method in ("GET", "HEAD") and (path == _ADAPTERS or path.startswith(_READING)):
        return Level.INFERENCE
    return Level.OPERATOR if path in _OPERATOR else Level.ADMIN


def _is_refused(path: str) -> bool:
    """Whether the path only says that this server has not got it, which every key may hear."""
    _, version, name, *_ = f"{path}//".split("/")
    return version == "v1" and name in NOT_IMPLEMENTED


def counts(method: str, level: Level) -> bool:
    """Whether a request counts towards the limits of its key: what computes, and not what only reads."""
    return level is Level.INFERENCE and method == "POST"
