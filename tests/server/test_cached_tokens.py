"""How many tokens of a prompt were found in the prefix cache, as usage says it."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from adapterhub import AdapterHub
from adapterhub.server import create_app

_numbers = itertools.count()


@pytest.fixture
async def client(model_hub: AdapterHub) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(model_hub))
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


def text() -> str:
    """A long text that no request has had."""
    return f"{next(_numbers)} " + "What is there to say about printers? " * 20


async def usage(client: httpx.AsyncClient, path: str, **asked: object) -> dict[str, Any]:
    answer = await client.post(path, json={"model": "json", **asked})
    assert answer.status_code == 200, answer.text
    if "stream" not in asked:
        found: dict[str, Any] = answer.json()["usage"]
        return found
    *_, last, _done = [line for line in answer.text.splitlines() if line]
    return json.loads(last.removeprefix("data: "))["usage"]


@pytest.mark.parametrize("stream", [{}, {"stream": True, "stream_options": {"include_usage": True}}])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_a_prompt_that_comes_again_is_found(
    client: httpx.AsyncClient, path: str, stream: dict[str, Any]
):
    said = text()
    prompt = {"messages": [{"role": "user", "content": said}]} if "chat" in path else {"prompt": said}
    asked = {**prompt, **stream, "max_tokens": 3, "ignore_eos": True}
    first, again = await usage(client, path, **asked), await usage(client, path, **asked)
    assert "prompt_tokens_details" not in first
    cached = again.pop("prompt_tokens_details")["cached_tokens"]
    assert 0.8 * first["prompt_tokens"] < cached < first["prompt_tokens"]
    assert again == first


async def test_prompts_of_one_request_are_added(client: httpx.AsyncClient):
    asked = {"prompt": [text(), text()], "max_tokens": 2}
    await usage(client, "/v1/completions", **asked)
    again = await usage(client, "/v1/completions", **asked)
    assert again["prompt_tokens_details"]["cached_tokens"] > 0.8 * again["prompt_tokens"]


async def test_another_adapter_finds_nothing(client: httpx.AsyncClient):
    asked = {"prompt": text(), "max_tokens": 2}
    await usage(client, "/v1/completions", **asked)
    assert "prompt_tokens_details" not in await usage(client, "/v1/completions", **{**asked, "model": "base"})


async def test_responses_say_so_too(client: httpx.AsyncClient):
    asked = {"input": text(), "max_output_tokens": 2}
    first = await usage(client, "/v1/responses", **asked)
    again = await usage(client, "/v1/responses", **asked)
    assert first["input_tokens_details"]["cached_tokens"] == 0
    assert again["input_tokens_details"]["cached_tokens"] > 0.8 * again["input_tokens"]


async def test_a_generation_of_the_hub_has_it(model_hub: AdapterHub):
    said = text()
    first, again = (model_hub.generate(said, "json", max_tokens=2, n=2) for _ in range(2))
    assert first.usage.cached_tokens == 0
    assert first.completions[1].num_cached_tokens > 0  # the first completion's prompt
    assert again.usage.cached_tokens > 0.8 * again.usage.prompt_tokens
