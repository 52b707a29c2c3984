"""Server-sent events: a stream's status waits for its first output, and comments keep a quiet stream open."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Mapping
from typing import Any, Self

from pydantic_core import to_json
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from adapterhub.server.config import ServerConfig
from adapterhub.server.errors import error_object, note_error

DONE = b"data: [DONE]\n\n"
_PING = b": ping\n\n"
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}  # the second is for nginx


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """One event.

    Args:
        data: Its data.
        name: Its `event:` line, which OpenAI's Responses have.
    """
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + to_json(data) + b"\n\n"


class EventStream(Response):
    """Sends events as they come; make it with `begin`. It closes the events at its end, whatever ends it.

    Args:
        events: The events; one that cannot be made ends them with an error event.
        first: Gives the first of them.
        headers: Further headers of the answer.
        ping_seconds: After this time without an event a comment is sent.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        first: asyncio.Task[bytes | None],
        headers: Mapping[str, str],
        ping_seconds: float,
    ) -> None:
        super().__init__(headers={**_HEADERS, **headers})
        del self.headers["content-length"]
        self._events, self._first, self._ping_seconds = events, first, ping_seconds
        self._sent_at = time.monotonic()

    @classmethod
    async def begin(
        cls, events: AsyncGenerator[bytes], headers: Mapping[str, str], config: ServerConfig
    ) -> Self:
        """Waits for the first event, for a short time, so that what is wrong by then is an error with a status.

        Args:
            events: The events.
            headers: Further headers of the answer.
            config: How long to wait, and when to send comments.
        """
        first = asyncio.ensure_future(anext(events, None))
        try:
            await asyncio.wait({first}, timeout=config.first_output_seconds)
            if first.done():
                first.result()
        except BaseException:
            await _close(events, first)
            raise
        return cls(events, first, headers, config.ping_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the answer."""
        pinging = asyncio.ensure_future(self._ping(send))
        try:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            # A task of its own: from here each event would resume the coroutines of all middleware and back again.
            await asyncio.ensure_future(self._send_events(scope, send))
            pinging.cancel()
            await send({"type": "http.response.body", "body": b""})
        finally:
            pinging.cancel()
            await _close(self._events, self._first)

    async def _send_events(self, scope: Scope, send: Send) -> None:
        try:
            first = await self._first
            if first is not None:
                await self._send(send, first)
                async for one in self._events:
                    await self._send(send, one)
        except Exception as error:  # noqa: BLE001  the status has been sent
            note_error(scope, error)
            await self._send(send, event(error_object(error)) + DONE)

    def _send(self, send: Send, body: bytes) -> Awaitable[None]:
        self._sent_at = time.monotonic()
        return send({"type": "http.response.body", "body": body, "more_body": True})

    async def _ping(self, send: Send) -> None:
        """Sends a comment whenever the stream has been quiet for long; one timer is cheaper than one for each event."""
        while True:
            quiet = time.monotonic() - self._sent_at
            if quiet >= self._ping_seconds:
                await self._send(send, _PING)
            else:
                await asyncio.sleep(self._ping_seconds - quiet)


async def _close(events: AsyncGenerator[bytes], first: asyncio.Task[bytes | None]) -> None:
    first.cancel()
    with contextlib.suppress(asyncio.CancelledError, Exception):
        await first
    await events.aclose()
