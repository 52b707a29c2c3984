"""uvicorn's HTTP protocol with the bounds it lacks: on connections, on headers, and on clients that do not read."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from adapterhub.server.config import ServerConfig

_REFUSED = b"HTTP/1.1 %s\r\nconnection: close\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n"


class BoundedHttpProtocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """One connection.

    Bodies are bounded by `BodyLimitMiddleware`, idle connections by uvicorn itself.

    Args:
        *arguments: As for uvicorn's class.
        limits: The bounds.
        **named: As for uvicorn's class.
    """

    cycle: Any
    """The request whose headers came last."""
    connections: set[asyncio.Protocol]
    """All of the server."""

    def __init__(self, *arguments: Any, limits: ServerConfig, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._limits = limits
        self._header_bytes = 0
        self._timer: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Refuses a connection too many; a peer that no longer acknowledges is dropped by the system."""
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if connection is not None and hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            milliseconds = int(self._limits.write_seconds * 1000)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        if len(self.connections) > self._limits.max_connections:
            self._refuse(b"503 Service Unavailable")
        else:
            self._start("headers", self._limits.header_seconds)

    def data_received(self, data: bytes) -> None:
        """Counts what belongs to headers that are not complete yet."""
        before = self.cycle
        is_body = before is not None and before.more_body
        super().data_received(data)
        if self.cycle is not before:
            self._header_bytes = 0
            self._stop("headers")
        elif not is_body:
            self._header_bytes += len(data)
            self._start("headers", self._limits.header_seconds)
            if self._header_bytes > self._limits.max_header_bytes:
                self._refuse(b"431 Request Header Fields Too Large")

    def pause_writing(self) -> None:
        """The client does not read what it is sent."""
        super().pause_writing()
        self._start("write", self._limits.write_seconds)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._stop("write")

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the timers."""
        super().connection_lost(exc)
        for what in list(self._timer):
            self._stop(what)

    def _start(self, what: str, seconds: float) -> None:
        """Drops the connection after so many seconds; a timer that runs goes on."""
        if what not in self._timer:
            self._timer[what] = self.loop.call_later(seconds, self.transport.abort)

    def _stop(self, what: str) -> None:
        if timer := self._timer.pop(what, None):
            timer.cancel()

    def _refuse(self, status: bytes) -> None:
        self.transport.write(_REFUSED % status)
        self.transport.close()
