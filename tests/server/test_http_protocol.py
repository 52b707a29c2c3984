"""Clients that send headers slowly or without end, do not read, or are too many."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
from starlette.types import Receive, Scope, Send

from adapterhub.server import ServerConfig
from tests.server.live import live

BOUNDS = ServerConfig(header_seconds=0.5, max_header_bytes=4096, write_seconds=0.5)
ASKED = b"GET / HTTP/1.1\r\nhost: x\r\n"


class Endless:
    """Answers with bytes for as long as they are taken; `ended` says how the last answer ended."""

    def __init__(self) -> None:
        self.ended: asyncio.Event | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/endless":
            while (await self._gone(receive)) is False:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        await send({"type": "http.response.body", "body": b"done"})

    async def _gone(self, receive: Receive) -> bool:
        try:
            async with asyncio.timeout(0):
                return (await receive())["type"] == "http.disconnect"
        except TimeoutError:
            return False


def address_of(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return str(parts.hostname), int(parts.port or 0)


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    with live(Endless(), BOUNDS) as url:
        yield address_of(url)


@pytest.fixture
def connection(address: tuple[str, int]) -> Iterator[socket.socket]:
    with socket.create_connection(address, timeout=30) as connection:
        yield connection


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes or drops the connection."""
    received = b""
    try:
        while data := connection.recv(1 << 20):
            received += data
    except ConnectionResetError:
        pass
    return received


def test_a_connection_that_asks_nothing_is_dropped(connection: socket.socket):
    assert read_all(connection) == b""


def test_headers_that_do_not_end_in_time_are_dropped(connection: socket.socket):
    connection.sendall(ASKED)
    assert read_all(connection) == b""


def test_a_second_request_on_a_connection_has_its_own_time(connection: socket.socket):
    connection.sendall(ASKED + b"\r\n")
    assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    connection.sendall(ASKED)  # and no end
    assert b"HTTP/1.1" not in read_all(connection)


def test_headers_without_end_are_refused(connection: socket.socket):
    connection.sendall(ASKED + b"x: " + b"y" * 5000)
    assert read_all(connection).startswith(b"HTTP/1.1 431 ")


def test_a_connection_too_many_is_told_so():
    with live(Endless(), ServerConfig(max_connections=2)) as url, ExitStack() as opened:

        def connect() -> socket.socket:
            return opened.enter_context(socket.create_connection(address_of(url), timeout=30))

        for connection in (connect(), connect()):  # each has an answer, so the server knows both
            connection.sendall(ASKED + b"\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        assert read_all(connect()).startswith(b"HTTP/1.1 503 ")


def test_a_client_that_does_not_read_is_dropped(connection: socket.socket):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.sendall(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
    waiting = time.monotonic() + 30
    while time.monotonic() < waiting:
        try:
            connection.send(b"x")  # fails once the server has dropped the connection
        except (ConnectionResetError, BrokenPipeError):
            return
        time.sleep(0.05)
    pytest.fail("the server keeps a connection that reads nothing")
