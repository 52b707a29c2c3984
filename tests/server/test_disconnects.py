"""A client that leaves ends its row within a step of the engine: queued, in prefill, streaming or not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI

from adapterhub import AdapterHub
from adapterhub.server import create_app
from tests.server.asgi_client import Client, part
from tests.tiny import make_base
from tests.waiting import until

PATHS = ("/v1/chat/completions", "/v1/completions")
RESPONSES = "/v1/responses"
LONG = "word " * 500
MAX_TOKENS = 4000


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterHub]:
    """One row at a time, its prompt in steps of four tokens; room for answers that take long."""
    folder = tmp_path_factory.mktemp("long")
    base = make_base(folder / "base", max_position_embeddings=8192)
    limits = {"max_batch_size": 1, "max_num_batched_tokens": 4, "kv_cache_mib": 64}
    with AdapterHub.from_pretrained(base, folder / "registry", quantization=None, **limits) as hub:
        yield hub


@pytest.fixture
def app(hub: AdapterHub) -> FastAPI:
    return create_app(hub)


def asking(path: str, text: str = "Hi", **fields: Any) -> Client:
    """A client of an answer that takes thousands of steps."""
    if path == RESPONSES:
        body = {"model": "base", "input": text, "max_output_tokens": MAX_TOKENS, **fields}
    else:
        prompt = {"messages": [{"role": "user", "content": text}]} if "chat" in path else {"prompt": text}
        body = {"model": "base", "max_tokens": MAX_TOKENS, "ignore_eos": True, **prompt, **fields}
    return Client(part(json.dumps(body).encode()), path=path, headers={"content-type": "application/json"})


async def leaves(client: Client, asked: asyncio.Future[None], hub: AdapterHub) -> None:
    """The client leaves; its row ends before two more steps have."""
    client.leave()
    await asked
    steps = hub.stats().steps
    await until(lambda: hub.stats().running == 0)
    assert hub.stats().steps <= steps + 2  # one was running


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [True, False])
async def test_while_tokens_are_generated(app: FastAPI, hub: AdapterHub, path: str, stream: bool):
    client, before = asking(path, stream=stream), hub.stats().tokens
    asked = asyncio.ensure_future(client.ask(app))
    await until(lambda: hub.stats().tokens > before + 2)
    assert not asked.done()
    await leaves(client, asked, hub)
    assert hub.stats().tokens < before + MAX_TOKENS
    assert b"[DONE]" not in client.body


@pytest.mark.parametrize("path", [*PATHS, RESPONSES])
@pytest.mark.parametrize("stream", [True, False])
async def test_in_prefill(app: FastAPI, hub: AdapterHub, path: str, stream: bool):
    client, before = asking(path, LONG, stream=stream), hub.stats()
    asked = asyncio.ensure_future(client.ask(app))
    await until(lambda: hub.stats().steps > before.steps)
    await leaves(client, asked, hub)
    assert hub.stats().tokens == before.tokens  # the first was still to come
    assert client.answers == []


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [True, False])
async def test_while_it_is_queued(app: FastAPI, hub: AdapterHub, path: str, stream: bool):
    first, second = asking(path, stream=True), asking(path, stream=stream)
    running = asyncio.ensure_future(first.ask(app))
    await until(lambda: hub.stats().running == 1)
    queued = asyncio.ensure_future(second.ask(app))
    await until(lambda: hub.stats().waiting == 1)
    second.leave()
    await queued
    await until(lambda: hub.stats().waiting == 0)
    assert hub.stats().running == 1  # the other's goes on
    assert second.answers == []
    await leaves(first, running, hub)


async def test_several_answers_of_one_request(app: FastAPI, hub: AdapterHub):
    client, before = asking(PATHS[0], stream=True, n=3, temperature=1), hub.stats().tokens
    asked = asyncio.ensure_future(client.ask(app))
    await until(lambda: hub.stats().tokens > before)
    await leaves(client, asked, hub)
    assert hub.stats().waiting == 0
