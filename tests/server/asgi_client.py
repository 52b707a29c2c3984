"""One request to an ASGI application without a server, for tests that decide what is sent and when a client leaves."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Scope

GONE: Message = {"type": "http.disconnect"}


def part(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


class Client:
    """One request to an application, without a server: `messages` is what it sends, `answers` what it got."""

    def __init__(self, *messages: Message, path: str = "/", headers: dict[str, str] | None = None) -> None:
        self.scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "query_string": b"",
            "headers": [(k.encode(), v.encode()) for k, v in (headers or {}).items()],
            "client": ("127.0.0.1", 1),
        }
        self.inbox: asyncio.Queue[Message] = asyncio.Queue()
        self.answers: list[Message] = []
        for message in messages or (part(b""),):
            self.inbox.put_nowait(message)

    async def ask(self, app: ASGIApp) -> None:
        await app(self.scope, self.inbox.get, self._send)

    async def _send(self, message: Message) -> None:
        self.answers.append(message)

    def leave(self) -> None:
        """Closes the connection."""
        self.inbox.put_nowait(GONE)

    @property
    def body(self) -> bytes:
        """What has come of the answer's body."""
        return b"".join(message.get("body", b"") for message in self.answers)

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.answers[0]["headers"]}
