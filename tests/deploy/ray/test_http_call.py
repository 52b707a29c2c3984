"""A request between a front and a replica, without Ray."""

import asyncio
import json
import pickle

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from adapterhub.deploy.ray.http_call import HttpCall, named_adapter
from tests.server.asgi_client import GONE, Client, part

BASES = frozenset({"base", "auto"})


@pytest.mark.parametrize(
    ("model", "adapter"),
    [
        ("sql", "sql"),
        ("sql@prod", "sql"),
        ("sql@3", "sql"),
        ("json:0.7+support:0.3", "json:0.7+support:0.3"),
        ("auto", None),
        ("base", None),
        (7, None),
        (None, None),
    ],
)
def test_the_adapter_is_the_model_without_its_version(model: object, adapter: str | None):
    assert named_adapter(json.dumps({"model": model}).encode(), BASES) == adapter


TOO_MANY_PARTS = b'{"model": "sql", "prompt": [' + b"[]," * 300_000 + b"1]}"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"7", b"{}", b"\xff", b'{"model": "sql", "a": ' + b"[" * 9_000, TOO_MANY_PARTS]
)
def test_a_body_that_names_nothing(body: bytes):
    assert named_adapter(body, BASES) is None


async def read(*parts: Message) -> HttpCall:
    client = Client(*parts, path="/v1/completions", headers={"authorization": "Bearer x"})
    return await HttpCall.read({**client.scope, "app": object()}, client.inbox.get, BASES)


async def test_a_call_is_the_whole_request_and_travels():
    call = await read(part(b'{"model": "sq', more=True), part(b'l"}'))
    call = pickle.loads(pickle.dumps(call))
    assert (call.body, call.adapter) == (b'{"model": "sql"}', "sql")
    assert call.scope["path"] == "/v1/completions"
    assert call.scope["headers"] == [(b"authorization", b"Bearer x")]
    assert "app" not in call.scope


async def test_half_a_request_is_none():
    with pytest.raises(ClientDisconnect):
        await read(part(b'{"model": "sql"', more=True), GONE)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"], "more_body": True})
    await asyncio.sleep(0)
    await send({"type": "http.response.body", "body": b"!"})


async def test_answers_are_what_the_application_sends_in_order():
    call = await read(part(b"hello"))
    messages = [message async for some in call.answers(echo) for message in some]
    assert messages[0]["status"] == 200
    assert b"".join(one.get("body", b"") for one in messages) == b"hello!"


async def test_what_is_sent_at_once_is_yielded_at_once():
    call = await read(part(b"hello"))
    first = await anext(call.answers(echo))
    assert len(first) == 2


async def test_an_error_of_the_application_is_the_callers():
    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("broken")

    call = await read(part(b""))
    with pytest.raises(ValueError, match="broken"):
        _ = [some async for some in call.answers(fails)]


async def test_the_application_ends_with_the_caller():
    ended = asyncio.Event()

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await receive()
            await receive()  # never comes: the client has sent all
        finally:
            ended.set()

    call = await read(part(b""))
    answers = call.answers(endless)
    assert (await anext(answers))[0]["status"] == 200
    await answers.aclose()
    assert ended.is_set()
