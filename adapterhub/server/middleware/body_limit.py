"""Bounds on what a client sends as a body: how much, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapterhub.server.middleware.paths import path_of

_CLOSE = {"connection": "close"}
_PART_BYTES = 2**20


class BodyLimitMiddleware:
    """Raises an HTTP error where a route reads a body that is too large (413) or comes too slowly (408).

    Bytes are counted as they come, so a length that was not declared, or not truly, makes no difference.

    Args:
        app: What reads the body.
        max_bytes: From a path to the maximum size of its bodies, bytes.
        seconds: In which each MiB of a body has to come, and what is less as a whole.
    """

    def __init__(self, app: ASGIApp, max_bytes: Callable[[str], int], seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            receive = _LimitedBody(scope, receive, self._max_bytes(path_of(scope)), self._seconds).receive
        await self._app(scope, receive, send)


class _LimitedBody:
    """The body of one request."""

    def __init__(self, scope: Scope, receive: Receive, max_bytes: int, seconds: float) -> None:
        declared = Headers(scope=scope).get("content-length", "")
        self._receive = receive
        self._max_bytes = max_bytes
        self._too_large = declared.isdecimal() and int(declared) > max_bytes
        self._size = 0
        self._seconds = seconds
        self._started = asyncio.get_running_loop().time()
        self._complete = False

    async def receive(self) -> Message:
        """As ASGI's `receive`.

        Raises:
            HTTPException: 413 or 408; the connection is closed, for the rest of the body would be read as a request.
        """
        if self._too_large:
            raise HTTPException(413, f"The body is larger than {self._max_bytes} bytes.", _CLOSE)
        try:
            async with asyncio.timeout_at(self._deadline()):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, "The body did not come in time.", _CLOSE) from None
        self._size += len(message.get("body", b""))
        self._too_large = self._size > self._max_bytes
        self._complete = not message.get("more_body", False)
        return message if not self._too_large else await self.receive()

    def _deadline(self) -> float | None:
        """When the next part has to be there; what comes after the last is the end of the connection."""
        parts = 1 + self._size // _PART_BYTES
        return None if self._complete else self._started + self._seconds * parts
