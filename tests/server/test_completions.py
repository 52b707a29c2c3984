"""`/v1/completions` on an engine whose answer is `[adapter] prompt`, a character a token."""

import json
from typing import Any

import httpx
import pytest

from adapterhub.server.protocol.completions import MAX_PROMPTS

PATH = "/v1/completions"


async def complete(client: httpx.AsyncClient, **fields: object) -> dict[str, Any]:
    answer = await client.post(PATH, json={"model": "base", **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


async def chunks(client: httpx.AsyncClient, **fields: object) -> list[dict[str, Any]]:
    answer = await client.post(PATH, json={"model": "base", "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    *frames, done = [frame.removeprefix("data: ") for frame in answer.text.split("\n\n") if frame]
    assert done == "[DONE]"
    return [json.loads(frame) for frame in frames]


def texts(answer: dict[str, Any]) -> list[str]:
    return [choice["text"] for choice in answer["choices"]]


def streamed_texts(streamed: list[dict[str, Any]]) -> list[str]:
    found: dict[int, str] = {}
    for chunk in streamed:
        for choice in chunk["choices"]:
            found[choice["index"]] = found.get(choice["index"], "") + choice["text"]
    return [found[index] for index in sorted(found)]


PROMPTS = [
    ("Hi", ["[base] Hi"]),
    (["Hi", "you"], ["[base] Hi", "[base] you"]),
    ([72, 105], ["[base] Hi"]),
    ([[72, 105], [121]], ["[base] Hi", "[base] y"]),
]


class TestPrompts:
    @pytest.mark.parametrize(("prompt", "expected"), PROMPTS)
    async def test_all_forms(self, client: httpx.AsyncClient, prompt: object, expected: list[str]):
        answer = await complete(client, prompt=prompt)
        assert texts(answer) == expected
        assert [choice["index"] for choice in answer["choices"]] == list(range(len(expected)))
        assert streamed_texts(await chunks(client, prompt=prompt)) == expected

    @pytest.mark.parametrize(
        "prompt",
        [
            "",
            [],
            [[]],
            [""],
            None,
            {},
            1,
            ["a", 1],
            [[1], "a"],
            [-1],
            [2**31],
            [[1.5]],
            ["a"] * (MAX_PROMPTS + 1),
        ],
    )
    async def test_others_are_refused(self, client: httpx.AsyncClient, prompt: object):
        for stream in (False, True):
            answer = await client.post(PATH, json={"model": "base", "prompt": prompt, "stream": stream})
            assert answer.status_code == 400
            assert answer.json()["error"]["param"].startswith("prompt")

    async def test_no_chat_template_is_applied(self, client: httpx.AsyncClient):
        assert (await complete(client, prompt="Hi"))["usage"]["prompt_tokens"] == 2

    async def test_several_completions_of_several_prompts_are_in_order(self, client: httpx.AsyncClient):
        expected = ["[base] a", "[base] a", "[base] b", "[base] b"]
        assert texts(await complete(client, prompt=["a", "b"], n=2)) == expected
        assert streamed_texts(await chunks(client, prompt=["a", "b"], n=2)) == expected

    async def test_usage_adds_up(self, client: httpx.AsyncClient):
        usage = {"prompt_tokens": 3, "completion_tokens": 2 * (8 + 9), "total_tokens": 37}
        assert (await complete(client, prompt=["a", "bc"], n=2))["usage"] == usage
        streamed = await chunks(client, prompt=["a", "bc"], n=2, stream_options={"include_usage": True})
        assert streamed[-1]["choices"] == []
        assert streamed[-1]["usage"] == usage

    async def test_one_prompt_too_long_fails_all(self, client: httpx.AsyncClient):
        for stream in (False, True):
            answer = await client.post(
                PATH, json={"model": "base", "prompt": ["a", "b" * 9000], "stream": stream}
            )
            assert answer.status_code == 400
            assert answer.json()["error"]["code"] == "context_length_exceeded"


class TestEcho:
    @pytest.mark.parametrize("prompt", ["Hi", [72, 105]])
    async def test_begins_with_the_prompt(self, client: httpx.AsyncClient, prompt: object):
        assert texts(await complete(client, prompt=prompt, echo=True)) == ["Hi[base] Hi"]
        assert streamed_texts(await chunks(client, prompt=prompt, echo=True)) == ["Hi[base] Hi"]
        assert texts(await complete(client, prompt=prompt, echo=True, max_tokens=0)) == ["Hi"]
        streamed = await chunks(client, prompt=prompt, echo=True, max_tokens=0)
        assert streamed_texts(streamed) == ["Hi"]
        assert streamed[-1]["choices"][0]["finish_reason"] == "length"

    async def test_every_choice_has_it(self, client: httpx.AsyncClient):
        streamed = await chunks(client, prompt=["a", "b"], n=2, echo=True, max_tokens=1)
        assert streamed_texts(streamed) == ["a[", "a[", "b[", "b["]


class TestAnswer:
    async def test_has_openai_form(self, client: httpx.AsyncClient):
        answer = await complete(client, model="json", prompt="Hi", max_tokens=3)
        assert answer["id"].startswith("cmpl-")
        assert answer["object"] == "text_completion"
        assert answer["model"] == "json"
        assert answer["choices"] == [{"index": 0, "text": "[js", "logprobs": None, "finish_reason": "length"}]
        assert answer["adapterhub"] == {"adapter": "json", "version": 1, "route": None}

    async def test_a_stream_ends_with_reason_and_adapter(self, client: httpx.AsyncClient):
        *_, last = await chunks(client, model="json", prompt="Hi")
        assert last["choices"][0]["finish_reason"] == "stop"
        assert last["adapterhub"]["adapter"] == "json"
        assert "usage" not in last

    async def test_stop_strings_end_it_and_are_left_out(self, client: httpx.AsyncClient):
        answer = await complete(client, prompt="Hi there", stop=["th"])
        assert texts(answer) == ["[base] Hi "]
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert streamed_texts(await chunks(client, prompt="Hi there", stop=["th"])) == ["[base] Hi "]


@pytest.mark.parametrize("prompt", [[0x110000], [72, 0xD800], [[72], [0xDFFF]]])
async def test_a_token_that_the_base_has_not_is_refused(client: httpx.AsyncClient, prompt: object):
    for stream in (False, True):
        body = {"model": "base", "prompt": prompt, "stream": stream, "echo": True}
        answer = await client.post("/v1/completions", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")
