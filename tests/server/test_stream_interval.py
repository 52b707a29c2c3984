"""How many tokens a chunk of a stream has: the server's setting, or a request's if that is more."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from adapterhub import AdapterHub
from adapterhub.server import ServerConfig, create_app
from tests.server.asgi_client import Client, part

CHAT = "/v1/chat/completions"
ASKED = {"model": "json", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9, "stream": True}


@pytest.fixture
async def slow_client(hub: AdapterHub) -> AsyncIterator[httpx.AsyncClient]:
    """Calls a server whose streams have four tokens in a chunk."""
    transport = httpx.ASGITransport(create_app(hub, ServerConfig(stream_interval=4)))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


async def events(client: httpx.AsyncClient, path: str, **asked: object) -> list[dict[str, Any]]:
    answer = await client.post(path, json=asked)
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


async def texts(client: httpx.AsyncClient, **fields: object) -> list[str]:
    """The texts of the chunks of a chat that have one; an answer is `[json@1] ...`."""
    chunks = await events(client, CHAT, **ASKED, **fields)
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    return [delta["content"] for delta in deltas if delta.get("content")]


async def test_a_token_is_a_chunk_if_nothing_is_set(client: httpx.AsyncClient):
    assert await texts(client) == list("[json@1] ")


async def test_the_servers_interval(slow_client: httpx.AsyncClient):
    assert await texts(slow_client) == ["[", "json", "@1] "]
    chunks = await events(
        slow_client, "/v1/completions", model="json", prompt=["ab", "cd"], max_tokens=9, stream=True
    )
    by_index = [[c["choices"][0]["text"] for c in chunks if c["choices"][0]["index"] == i] for i in (0, 1)]
    assert by_index == [["[", "json", "@1] "]] * 2
    told = await events(
        slow_client, "/v1/responses", model="json", input="Hi", max_output_tokens=9, stream=True
    )
    deltas = [each["delta"] for each in told if each["type"] == "response.output_text.delta"]
    assert deltas == ["[", "json", "@1] "]


@pytest.mark.parametrize(("interval", "expected"), [(6, ["[", "json@1", "] "]), (2, ["[", "json", "@1] "])])
async def test_a_requests_interval_raises_the_servers(
    slow_client: httpx.AsyncClient, interval: int, expected: list[str]
):
    assert await texts(slow_client, stream_interval=interval) == expected


async def test_an_interval_that_is_none(client: httpx.AsyncClient):
    answer = await client.post(CHAT, json={**ASKED, "stream_interval": 0})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "stream_interval"


async def test_usage_and_the_reason_of_the_end_count_all_tokens(slow_client: httpx.AsyncClient):
    chunks = await events(slow_client, CHAT, **ASKED, stream_options={"include_usage": True})
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * 4 + ["length"]
    assert chunks[-1]["usage"]["completion_tokens"] == 9


async def test_events_of_one_token_are_sent_together(hub: AdapterHub):
    client = Client(part(json.dumps(ASKED).encode()), path=CHAT)
    await client.ask(create_app(hub))
    first, *_, last, done, end = [message.get("body", b"") for message in client.answers[1:]]
    assert first.count(b"data: ") == 2  # the role and the first text
    assert b'"content":" "' in last
    assert b'"finish_reason":"length"' in last
    assert (done, end) == (b"data: [DONE]\n\n", b"")
