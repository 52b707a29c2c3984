"""Streams as events: when the status is decided, comments on a quiet stream, errors, and that nothing is left open."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest

from adapterhub.errors import CapacityError, GenerationError
from adapterhub.server import ServerConfig
from adapterhub.server.generating.streaming import DONE, EventStream, event

CONFIG = ServerConfig(first_output_seconds=0.05, ping_seconds=0.02)


class Source:
    """Events of a test, and whether they were closed.

    Args:
        steps: Bytes to send, an exception to raise, or something to wait for.
    """

    def __init__(self, *steps: bytes | Exception | Callable[[], Any]) -> None:
        self._steps = steps
        self.closed = False

    async def events(self) -> AsyncGenerator[bytes]:
        try:
            for step in self._steps:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, bytes):
                    yield step
                else:
                    await step()
        finally:
            self.closed = True


async def sent(source: Source) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        messages.append(message)

    response = await EventStream.begin(source.events(), {"x-adapterhub-adapter": "json"}, CONFIG)
    await response({"type": "http"}, None, send)  # type: ignore[arg-type]
    return messages


def bodies(messages: list[dict[str, Any]]) -> list[bytes]:
    return [message["body"] for message in messages[1:]]


async def quiet() -> None:
    await asyncio.sleep(0.07)


async def test_events_are_sent_as_they_come():
    source = Source(b"a", b"b", DONE)
    messages = await sent(source)
    assert bodies(messages) == [b"a", b"b", DONE, b""]
    assert [message.get("more_body", False) for message in messages[1:]] == [True, True, True, False]
    assert source.closed


async def test_headers_let_no_proxy_buffer_or_cache():
    start, *_ = await sent(Source(DONE))
    headers = dict(start["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"x-accel-buffering"] == b"no"
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"x-adapterhub-adapter"] == b"json"
    assert b"content-length" not in headers


@pytest.mark.parametrize("error", [CapacityError("Full."), GenerationError("Broken.")])
async def test_an_error_before_the_first_event_keeps_its_status(error: Exception):
    source = Source(error)
    with pytest.raises(type(error)):
        await sent(source)
    assert source.closed


async def test_a_later_error_is_an_event_and_the_stream_ends():
    source = Source(b"a", CapacityError("Full.", hint="Wait."))
    *_, last, end = bodies(await sent(source))
    expected = {
        "message": "Full. Wait.",
        "type": "rate_limit_error",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert last == event({"error": expected}) + DONE
    assert end == b""
    assert source.closed


async def test_an_error_of_our_own_says_nothing_of_the_inside(caplog: pytest.LogCaptureFixture):
    *_, last, _ = bodies(await sent(Source(b"a", RuntimeError("the secret of /home/me/base"))))
    assert b"secret" not in last
    assert b"internal_error" in last
    assert "RuntimeError" in caplog.text
    assert "the secret" not in caplog.text  # it might be a prompt


async def test_a_slow_first_event_sends_status_and_comments_meanwhile():
    assert bodies(await sent(Source(quiet, quiet, b"a", DONE)))[-4:] == [b": ping\n\n", b"a", DONE, b""]


async def test_a_quiet_stream_sends_comments():
    _, *between, done, _ = bodies(await sent(Source(b"a", quiet, DONE)))
    assert set(between) == {b": ping\n\n"}
    assert done == DONE


async def test_cancelling_closes_the_events():
    source, forever = Source(b"a", asyncio.Event().wait), asyncio.Event()

    async def send(message: Any) -> None:
        forever.set()

    response = await EventStream.begin(source.events(), {}, CONFIG)
    answering = asyncio.ensure_future(response({"type": "http"}, None, send))  # type: ignore[arg-type]
    await forever.wait()
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    assert source.closed


async def test_cancelling_before_the_first_event_closes_the_events():
    source = Source(asyncio.Event().wait, b"a")
    beginning = asyncio.ensure_future(
        EventStream.begin(source.events(), {}, ServerConfig(first_output_seconds=60))
    )
    await asyncio.sleep(0)
    beginning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beginning
    assert source.closed


async def test_a_client_that_reads_slowly_holds_the_source_back():
    taken = 0

    async def count() -> None:
        nonlocal taken
        taken += 1

    gate = asyncio.Event()

    async def send(message: Any) -> None:
        if message.get("body"):
            await gate.wait()

    source = Source(b"a", count, b"b", count, DONE)
    response = await EventStream.begin(source.events(), {}, CONFIG)
    answering = asyncio.ensure_future(response({"type": "http"}, None, send))  # type: ignore[arg-type]
    for _ in range(20):
        await asyncio.sleep(0)
    assert taken == 0
    gate.set()
    await answering
    assert taken == 2
