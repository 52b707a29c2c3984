"""One log line for each request: who, what, how it ended and how long it took; no text, key or query.

Who is the client's address and the name of its key. Probes, which come every few seconds, are logged at DEBUG.
"""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapterhub.server.metrics import CLIENT_GONE
from adapterhub.server.middleware.draining import PROBES
from adapterhub.server.middleware.paths import path_of

_log = logging.getLogger("adapterhub.server.access")
_MAX_PATH = 200


class AccessLogMiddleware:
    """Logs at INFO when an answer has ended.

    Args:
        app: What answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), CLIENT_GONE

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        finally:
            state, is_probe = scope["state"], path_of(scope) in PROBES
            _log.log(
                logging.DEBUG if is_probe else logging.INFO,
                '%s "%s %s" %d %.3fs key=%s id=%s',
                scope["client"][0] if scope.get("client") else "-",
                scope["method"],
                _printable(scope["path"]),
                status,
                time.perf_counter() - started,
                getattr(state.get("caller"), "name", "-"),
                state["request_id"],
            )


def _printable(path: str) -> str:
    """A path that cannot forge a log line."""
    return "".join(character if character.isprintable() else "?" for character in path[:_MAX_PATH])
