"""Every request has an id: the client's `X-Request-Id` if it is a safe one, else a new one. The answer repeats it.

A vLLM server behind this one gets it too, with the trace that the request is a part of.
"""

from __future__ import annotations

import re
import uuid
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapterhub.server.metrics import span_of
from adapterhub.vllm.upstream_headers import upstream_headers

request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""The id of the request that the running task answers, for log lines."""
_TRACE = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C's trace context, without parts of later versions."""
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
        upstream_headers.set({"x-request-id": given, **_trace(scope)})

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = given
            await send(message)

        await self._app(scope, receive, send_with_id)


def _trace(scope: Scope) -> dict[str, str]:
    """The request's span, or without one the client's trace, as headers of further requests."""
    if span := span_of(scope):
        return span.headers
    given = Headers(scope=scope).get("traceparent", "")
    return {"traceparent": given} if _TRACE.fullmatch(given) else {}


def _safe(given: str | None) -> str:
    """The client's id if it can stand in a log line and in a header."""
    return given if given and _SAFE.fullmatch(given) else uuid.uuid4().hex
