"""Every request has an id: the client's `X-Request-Id` if it is a safe one, else a new one. The answer repeats it."""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""The id of the request that the running task answers, for log lines."""
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,63}")


class RequestIdMiddleware:
    """Puts the id into the request's state as `request_id` and into the answer's headers.

    Args:
        app: What answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = _safe(Headers(scope=scope).get("x-request-id"))
        scope.setdefault("state", {})["request_id"] = given
        request_id.set(given)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = given
            await send(message)

        await self._app(scope, receive, send_with_id)


def _safe(given: str | None) -> str:
    """The client's id if it can stand in a log line and in a header."""
    return given if given and _SAFE.fullmatch(given) else uuid.uuid4().hex
