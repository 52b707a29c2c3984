"""Ends what a request started once its client has gone: while it is queued, in prefill or streaming."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapterhub.server.middleware.paths import path_of


class DisconnectMiddleware:
    """Cancels the task that answers when the connection closes.

    Starlette tells a route of a closed connection only where it reads or sends; a request that waits for the engine
    does neither. So one task reads what the client sends, up to its end, while another answers.

    Args:
        app: What answers.
        paths: Where a cancelled answer has changed nothing: those that generate. Others run to their end.
    """

    def __init__(self, app: ASGIApp, paths: Collection[str]) -> None:
        self._app = app
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or path_of(scope) not in self._paths:
            await self._app(scope, receive, send)
            return
        inbox = _Inbox(receive)
        answering = asyncio.ensure_future(self._app(scope, inbox.receive, send))
        reading = asyncio.ensure_future(inbox.read_all())
        try:
            await asyncio.wait({answering, reading}, return_when=asyncio.FIRST_COMPLETED)
            gone = reading.done() and reading.result()
            if not gone:
                await answering
        finally:
            answering.cancel()
            reading.cancel()
            await asyncio.gather(answering, reading, return_exceptions=True)


class _Inbox:
    """What a client sends, kept for the route, so that the end of the connection is seen at once."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: asyncio.Queue[Message | Exception] = asyncio.Queue()

    async def receive(self) -> Message:
        """As ASGI's `receive`."""
        message = await self._messages.get()
        if isinstance(message, Exception):
            raise message
        return message

    async def read_all(self) -> bool:
        """Reads until the client has gone; False if the body is refused, which `receive` then raises."""
        while True:
            try:
                message = await self._receive()
            except Exception as error:  # noqa: BLE001  the route's to answer
                self._messages.put_nowait(error)
                return False
            if message["type"] == "http.disconnect":
                return True  # the route is cancelled; told of it, it would take half a body for a bad one
            self._messages.put_nowait(message)
