"""One HTTP request on its way from a front to a replica, and the answer on its way back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass
from typing import Any, Self

from pydantic_core import from_json
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope

from adapterhub.server.errors import FieldError
from adapterhub.server.protocol.body_size import check_text_size

_SCOPE = (
    "type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "headers",
    "client", "server",
)  # fmt: skip
"""What ASGI defines; the rest belongs to the process that has it."""


@dataclass(frozen=True)
class HttpCall:
    """A request that was read to its end.

    Attributes:
        scope: Its ASGI scope.
        body: Its body.
        adapter: The adapter that it names, without a version; None for the bare base, or if the router chooses.
    """

    scope: dict[str, Any]
    body: bytes
    adapter: str | None

    @classmethod
    async def read(cls, scope: Scope, receive: Receive, without_adapter: Collection[str]) -> Self:
        """Reads a request.

        Args:
            scope: Its ASGI scope.
            receive: Its body; what bounds it may raise.
            without_adapter: What `model` may be without naming an adapter.

        Raises:
            ClientDisconnect: The client has gone before the end.
        """
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message.get("body", b"")
            more = message.get("more_body", False)
        kept, content = {key: scope[key] for key in _SCOPE if key in scope}, bytes(body)
        return cls(kept, content, named_adapter(content, without_adapter))

    async def answers(self, app: ASGIApp) -> AsyncGenerator[list[Message]]:
        """Calls an application; yields what it sends, together what it sent at once.

        The application is cancelled when the caller stops.
        """
        sent: asyncio.Queue[Message | None] = asyncio.Queue()
        answering = asyncio.ensure_future(app(dict(self.scope), _Received(self.body), sent.put))
        answering.add_done_callback(lambda _: sent.put_nowait(None))
        try:
            more = True
            while more:
                messages = [await sent.get()]
                while not sent.empty():
                    messages.append(sent.get_nowait())
                more = messages[-1] is not None
                yield [message for message in messages if message is not None]
            await answering
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)


class _Received:
    """ASGI's `receive` of a body that is here; a client that leaves is seen by the cancellation."""

    def __init__(self, body: bytes) -> None:
        self._messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def __call__(self) -> Message:
        if not self._messages:
            await asyncio.Event().wait()
        return self._messages.pop()


def named_adapter(body: bytes, without_adapter: Collection[str]) -> str | None:
    """The adapter that a body's `model` names, without its version; None if there is none.

    Args:
        body: JSON, or anything: what is wrong with it is for the replica to say.
        without_adapter: What `model` may be without naming an adapter.
    """
    try:
        check_text_size(body)  # before any key is checked, and all streams of the front wait meanwhile
        model = from_json(body)["model"]
    except (FieldError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(model, str) or model in without_adapter:
        return None
    return model.partition("@")[0]
