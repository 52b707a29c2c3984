"""Counts running answers, and refuses new requests once the server is shutting down."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from adapterhub.errors import EngineClosedError
from adapterhub.server.errors import error_response
from adapterhub.server.lifecycle import Lifecycle
from adapterhub.server.middleware.paths import path_of

PROBES = frozenset({"/health", "/ping", "/ready", "/metrics"})
"""Paths that are answered to the end, and that a shutdown does not wait for."""


class DrainingMiddleware:
    """Answers 503 with `Retry-After` to what arrives after the shutdown began.

    Args:
        app: What answers the others.
        lifecycle: Counts them.
    """

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self._app = app
        self._lifecycle = lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or path_of(scope) in PROBES:
            await self._app(scope, receive, send)
        elif self._lifecycle.draining:
            await _refusal()(scope, receive, send)
        else:
            with self._lifecycle.answering():
                await self._app(scope, receive, send)


def _refusal() -> ASGIApp:
    error = EngineClosedError(
        "The server is shutting down.", hint="Send the request again; another server may answer it."
    )
    return error_response(error, headers={"connection": "close", "retry-after": "1"})
