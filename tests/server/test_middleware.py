"""The middleware by itself, over small applications: request ids, bodies, disconnects, the drain, log lines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapterhub.server.access.caller import Caller
from adapterhub.server.access.levels import Level
from adapterhub.server.lifecycle import Lifecycle
from adapterhub.server.middleware.access_log import AccessLogMiddleware
from adapterhub.server.middleware.body_limit import BodyLimitMiddleware
from adapterhub.server.middleware.disconnect import DisconnectMiddleware
from adapterhub.server.middleware.local_names import LocalNamesMiddleware
from adapterhub.server.middleware.request_id import RequestIdMiddleware
from tests.server.asgi_client import Client, part


async def body_of(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message["body"]
        if not message["more_body"]:
            return body


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the body."""
    body = await body_of(receive)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


class Waiting:
    """Reads the body and then waits for ever, as for an engine that is busy."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.cancelled = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await body_of(receive)
        self.asked.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise


# Request ids


@pytest.mark.parametrize("given", ["a", "req_7.2:x-Y", "0" * 64])
async def test_a_safe_request_id_is_kept(given: str):
    client = Client(headers={"x-request-id": given})
    await client.ask(RequestIdMiddleware(echo))
    assert client.scope["state"]["request_id"] == given
    assert client.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "a\nb", "-a", "0" * 65, "ä", "<script>"])
async def test_an_unsafe_request_id_is_replaced(given: str):
    first, second = (Client(headers={"x-request-id": given}) for _ in range(2))
    await first.ask(RequestIdMiddleware(echo))
    await second.ask(RequestIdMiddleware(echo))
    assert len({given, first.headers["x-request-id"], second.headers["x-request-id"]}) == 3


# Bodies


def limited(app: ASGIApp, max_bytes: int = 10, seconds: float = 30) -> ASGIApp:
    return BodyLimitMiddleware(app, lambda _: max_bytes, seconds)


@pytest.mark.parametrize("parts", [[b"0123456789"], [b"01234", b"56789"], [b"", b"0123456789", b""]])
async def test_a_body_up_to_the_limit_passes(parts: Sequence[bytes]):
    messages = [part(one, more=True) for one in parts[:-1]] + [part(parts[-1])]
    client = Client(*messages)
    await client.ask(limited(echo))
    assert client.answers[-1]["body"] == b"0123456789"


@pytest.mark.parametrize(
    ("messages", "declared"),
    [
        ([part(b"01234567890")], "11"),
        ([], "11"),  # refused before anything of it has come
        ([part(b"01234567890")], None),
        ([part(b"01234567890")], "3"),
        ([part(b"012345", more=True), part(b"678901", more=True)], None),
    ],
)
async def test_a_larger_body_is_refused(messages: Sequence[Message], declared: str | None):
    client = Client(*messages, headers={"content-length": declared} if declared else {})
    with pytest.raises(HTTPException) as refused:
        await client.ask(limited(echo))
    assert refused.value.status_code == 413
    assert refused.value.headers == {"connection": "close"}


async def test_a_body_that_does_not_come_is_refused():
    client = Client(part(b"0", more=True))
    with pytest.raises(HTTPException) as refused:
        await client.ask(limited(echo, seconds=0.01))
    assert refused.value.status_code == 408


async def test_a_limit_of_its_own_for_a_path():
    app = BodyLimitMiddleware(echo, lambda path: 100 if path == "/upload" else 1, 30)
    client = Client(part(b"0123456789"), path="/upload")
    await client.ask(app)
    assert client.answers[-1]["body"] == b"0123456789"


# Disconnects


async def test_an_answer_passes_unchanged():
    client = Client(part(b"01", more=True), part(b"23"), path="/generate")
    await client.ask(DisconnectMiddleware(echo, ["/generate"]))
    assert [message.get("body") for message in client.answers] == [None, b"0123"]


async def test_a_client_that_leaves_cancels_its_answer():
    client, waiting = Client(path="/generate"), Waiting()
    asking = asyncio.ensure_future(client.ask(DisconnectMiddleware(waiting, ["/generate"])))
    await waiting.asked.wait()
    assert not waiting.cancelled
    client.leave()
    await asking
    assert waiting.cancelled
    assert client.answers == []


async def test_a_client_that_leaves_within_its_body_has_sent_no_bad_one():
    client = Client(part(b"0", more=True), path="/generate")
    client.leave()
    await client.ask(DisconnectMiddleware(echo, ["/generate"]))
    assert client.answers == []


async def test_a_client_that_leaves_cancels_nothing_that_changes_adapters():
    client, waiting = Client(path="/registry"), Waiting()
    asking = asyncio.ensure_future(client.ask(DisconnectMiddleware(waiting, ["/generate"])))
    await waiting.asked.wait()
    client.leave()
    await asyncio.sleep(0)
    assert not waiting.cancelled
    asking.cancel()


async def test_a_server_that_ends_cancels_the_answer():
    client, waiting = Client(path="/generate"), Waiting()
    asking = asyncio.ensure_future(client.ask(DisconnectMiddleware(waiting, ["/generate"])))
    await waiting.asked.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert waiting.cancelled


async def test_errors_of_the_route_and_of_the_body_reach_the_handlers():
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError("of the route")

    with pytest.raises(LookupError, match="of the route"):
        await Client(path="/generate").ask(DisconnectMiddleware(fail, ["/generate"]))
    with pytest.raises(HTTPException) as refused:
        await Client(part(b"0" * 11), path="/generate").ask(
            limited(DisconnectMiddleware(echo, ["/generate"]))
        )
    assert refused.value.status_code == 413


# Names of the host


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"])
async def test_names_of_this_machine_are_answered(host: str):
    client = Client(headers={"host": host})
    await client.ask(LocalNamesMiddleware(echo))
    assert client.answers[0]["status"] == 200


@pytest.mark.parametrize("host", ["", "evil.example.org", "127.0.0.1.evil.example.org:8000", "[", "10.0.0.1"])
async def test_other_names_are_not(host: str):
    client = Client(headers={"host": host})
    await client.ask(LocalNamesMiddleware(echo))
    assert client.answers[0]["status"] == 400


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8000", 200),
        ("http://localhost:3000", 200),
        ("https://chat.example.org", 200),
        ("https://evil.example.org", 403),
        ("https://chat.example.org.evil.example.org", 403),
        ("null", 403),
        ("", 403),
    ],
)
async def test_a_page_of_another_host_cannot_post_what_browsers_send_without_asking(origin: str, status: int):
    client = Client(headers={"host": "127.0.0.1:8000", "origin": origin})
    await client.ask(LocalNamesMiddleware(echo, ["https://chat.example.org"]))
    assert client.answers[0]["status"] == status


async def test_pages_of_all_hosts_can_be_allowed():
    client = Client(headers={"host": "localhost", "origin": "https://chat.example.org"})
    await client.ask(LocalNamesMiddleware(echo, ["*"]))
    assert client.answers[0]["status"] == 200


# The drain


def test_a_shutdown_that_has_begun_stays_one():
    lifecycle = Lifecycle("loading the base")
    assert (lifecycle.stage, lifecycle.draining) == ("loading the base", False)
    lifecycle.enter("shutting down")
    lifecycle.enter("ready")  # the base has loaded meanwhile
    assert (lifecycle.stage, lifecycle.draining) == ("shutting down", True)


# Log lines


async def test_a_log_line_says_what_was_asked_and_how_it_ended(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "adapterhub.server.access")
    client = Client(part(b"secret prompt"), path="/a\nb", headers={"x-request-id": "r1"})
    client.scope["query_string"] = b"key=secret"
    await client.ask(RequestIdMiddleware(AccessLogMiddleware(echo)))
    (line,) = caplog.messages
    assert line.startswith('127.0.0.1 "POST /a?b" 200 ')
    assert line.endswith(" key=- id=r1")
    assert "secret" not in line
    assert "\n" not in line


async def test_the_name_of_the_key_is_in_the_log_and_probes_are_not(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "adapterhub.server.access")

    async def known(scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["caller"] = Caller("ann", Level.INFERENCE)
        await echo(scope, receive, send)

    for path in ("/health", "/v1/models", "/metrics"):
        await Client(path=path).ask(RequestIdMiddleware(AccessLogMiddleware(known)))
    (line,) = caplog.messages
    assert '"POST /v1/models" 200 ' in line
    assert " key=ann " in line


async def test_a_client_that_left_is_in_the_log(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "adapterhub.server.access")
    client, waiting = Client(path="/generate"), Waiting()
    app = RequestIdMiddleware(AccessLogMiddleware(DisconnectMiddleware(waiting, ["/generate"])))
    client.leave()
    await client.ask(app)
    assert '"POST /generate" 499 ' in caplog.messages[0]
