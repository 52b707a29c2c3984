"""Bodies of very many parts are refused before each part is checked, which would hold up the event loop."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pydantic
import pytest

from adapterhub.server.protocol.body_size import check_text_size
from adapterhub.server.protocol.completions import CompletionRequest

CHAT = {"model": "json", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}
OVER_10_000 = 10_001
OVER_262_144 = 262_145
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "user", "content": "Hi"}] * OVER_10_000},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}] * OVER_10_000}]},
        {"messages": [{"role": "assistant", "tool_calls": [5] * OVER_10_000}]},
        {"tools": [{"type": "function", "function": {"name": "f"}}] * OVER_10_000},
        {"stop": ["x"] * OVER_10_000},
        {"logit_bias": dict.fromkeys(map(str, range(OVER_10_000)), 1)},
        {"chat_template_kwargs": {"a": [[]] * 5001, "b": [[]] * 5001}},
        dict.fromkeys((f"f{number}" for number in range(OVER_10_000)), 1),
    ],
)
async def test_are_refused(client: httpx.AsyncClient, fields: dict[str, Any]):
    answer = await client.post("/v1/chat/completions", json=CHAT | fields)
    assert answer.status_code == 400
    assert "more than 10,000" in answer.json()["error"]["message"]


async def test_token_ids_may_be_many(client: httpx.AsyncClient):
    answer = await client.post("/v1/completions", json={"model": "base", "prompt": [65] * OVER_10_000})
    assert answer.json()["error"]["code"] == "context_length_exceeded"
    answer = await client.post("/detokenize", json={"tokens": [65] * OVER_10_000})
    assert answer.json() == {"prompt": "A" * OVER_10_000}


@pytest.mark.parametrize("prompt", [[-1] * OVER_10_000, ["a"] * OVER_10_000, [[-1] * OVER_10_000]])
def test_a_prompt_is_read_up_to_what_is_wrong(prompt: list[Any]):
    """To note what is wrong with each of a million tokens took ten seconds."""
    with pytest.raises(pydantic.ValidationError) as refused:
        CompletionRequest.model_validate({"model": "base", "prompt": prompt})
    assert refused.value.error_count() <= 4  # one for each form of a prompt


async def test_token_ids_are_read_up_to_a_wrong_one(client: httpx.AsyncClient):
    answer = await client.post("/detokenize", json={"tokens": [65, *[-1] * OVER_10_000]})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tokens.1"


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", "[]"), ("/tokenize", "5")])
async def test_what_is_no_object_is_told_in_jsons_words(client: httpx.AsyncClient, path: str, body: str):
    answer = await client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "Input should be an object."


@pytest.mark.parametrize(
    "prompt",
    [
        b"[" + b"[]," * OVER_262_144 + b"1]",
        b"[" + b"1," * OVER_262_144 + b"1]",
        b"[" + b'"",' * OVER_262_144 + b'""]',
        b'"", ' + b",".join(b'"%d":1' % number for number in range(60_000)),
        b'["\\\\\\"", ' + b'"\\\\",[],' * OVER_262_144 + b"1]",
    ],
)
async def test_parts_are_counted_before_they_are_parsed(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, prompt: bytes
):
    """Eight MiB of empty lists take a second to parse, and no other thread runs meanwhile."""
    monkeypatch.setattr("adapterhub.server.protocol.body.from_json", None)
    content = b'{"model": "base", "prompt": ' + prompt + b"}"
    answer = await client.post("/v1/completions", content=content, headers=JSON)
    assert answer.status_code == 400
    assert "more than 10,000" in answer.json()["error"]["message"]


@pytest.mark.parametrize("text", ["[[{1,2:" * 60_000, '"\\"[' * 60_000, "\\" * 80_000 + "[{" * 60_000])
def test_what_is_in_a_string_is_no_part(text: str):
    check_text_size(json.dumps({"model": "base", "prompt": [text, "\\"]}).encode())


@pytest.mark.parametrize(
    ("method", "path"),
    [("PATCH", "/v1/adapterhub/adapters/json"), ("POST", "/v1/adapterhub/adapters/json/pin")],
)
async def test_bodies_of_admins_have_the_same_bounds(client: httpx.AsyncClient, method: str, path: str):
    answer = await client.request(
        method, path, content=b'{"tags": [' + b"[]," * OVER_262_144 + b"1]}", headers=JSON
    )
    assert answer.status_code == 400
    assert "more than 10,000" in answer.json()["error"]["message"]
