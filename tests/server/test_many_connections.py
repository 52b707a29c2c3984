"""A thousand connections, idle or streaming, in little memory."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.server.process import serving

pytestmark = pytest.mark.alone
CONNECTIONS = 1000
MAX_MIB = 300
TEXT = "An answer that takes longer than a thousand clients take to come. " * 20


@pytest.fixture(autouse=True)
def enough_files() -> None:
    """The clients are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < CONNECTIONS + 100:
        if hard != resource.RLIM_INFINITY and hard < CONNECTIONS + 100:
            pytest.skip(f"at most {hard} files are allowed")
        resource.setrlimit(resource.RLIMIT_NOFILE, (CONNECTIONS + 100, hard))


async def connect(
    url: str, request: bytes, until: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that has asked, and whose answer has come so far."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(request)
    received = b""
    while until not in received:
        more = await reader.read(65536)
        assert more, received
        received += more
    return reader, writer


async def added_mib(url: str, process: psutil.Process, request: bytes, until: bytes) -> float:
    """By how much connections make the server larger while all of them are open."""
    before, opened = process.memory_info().rss, []
    try:
        for _ in range(CONNECTIONS // 50):  # a listener's backlog may be as short as 128
            opened += await asyncio.gather(*(connect(url, request, until) for _ in range(50)))
        return (process.memory_info().rss - before) / 2**20
    finally:
        for _, writer in opened:
            writer.transport.abort()
        await asyncio.sleep(0)


def test_a_thousand_connections(tiny_registry: Path):
    body = json.dumps(
        {
            "model": "json",
            "messages": [{"role": "user", "content": TEXT}],
            "max_tokens": len(TEXT),
            "stream": True,
        }
    ).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    stream = head + b"content-length: %d\r\n\r\n" % len(body) + body
    with serving(tiny_registry, token_seconds=0.5) as server:
        server.wait_until_ready()
        process = psutil.Process(server.process.pid)
        idle = asyncio.run(
            added_mib(server.url, process, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n", b"\r\n\r\n")
        )
        streaming = asyncio.run(added_mib(server.url, process, stream, b"data:"))
        print(f"1000 idle: {idle:.0f} MiB; 1000 streaming: {streaming:.0f} MiB", file=sys.stderr)
    assert idle < MAX_MIB
    assert streaming < MAX_MIB
