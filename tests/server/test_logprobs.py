"""Log-probabilities in both forms, against those of the hub."""

import json
import math
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from adapterhub import AdapterHub
from adapterhub.engine.interface import TokenLogprob
from adapterhub.requests.generation import Generation
from adapterhub.server import create_app
from adapterhub.server.generating.logprobs import chat_logprobs, completion_logprobs
from adapterhub.server.generating.token_texts import TokenTexts, text_bytes

ASKED = {"model": "base", "max_tokens": 6}
MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdapterHub]:
    with AdapterHub.from_pretrained("adapterhub-demo", tmp_path_factory.mktemp("registry")) as hub:
        yield hub


@pytest.fixture(scope="module")
def app(hub: AdapterHub) -> FastAPI:
    return create_app(hub)


async def post(client: httpx.AsyncClient, path: str, **fields: object) -> dict[str, Any]:
    answer = await client.post(path, json={**ASKED, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


async def streamed(client: httpx.AsyncClient, path: str, **fields: object) -> list[dict[str, Any]]:
    answer = await client.post(path, json={**ASKED, "stream": True, **fields})
    frames = [frame.removeprefix("data: ") for frame in answer.text.split("\n\n") if frame]
    return [json.loads(frame)["choices"][0] for frame in frames if frame != "[DONE]"]


class TestChat:
    PATH = "/v1/chat/completions"

    async def test_are_those_of_the_hub(self, client: httpx.AsyncClient, hub: AdapterHub):
        choice = await post(client, self.PATH, messages=MESSAGES, logprobs=True, top_logprobs=3)
        (completion,) = hub.generate("Hello", "base", max_tokens=6, logprobs=3).completions
        content = choice["logprobs"]["content"]
        assert "".join(token["token"] for token in content) == completion.text == choice["message"]["content"]
        for token, expected in zip(content, completion.logprobs, strict=True):
            assert token["logprob"] == pytest.approx(expected.logprob, abs=1e-5)
            assert bytes(token["bytes"]).decode() == token["token"]
            # Greedy: the most probable token is the one that was taken.
            assert token["top_logprobs"][0]["token"] == token["token"]
            logprobs = [each["logprob"] for each in token["top_logprobs"]]
            assert logprobs == sorted(logprobs, reverse=True)
            assert len(logprobs) == 3

    async def test_without_top_logprobs_there_are_none(self, client: httpx.AsyncClient):
        choice = await post(client, self.PATH, messages=MESSAGES, logprobs=True)
        assert {tuple(token["top_logprobs"]) for token in choice["logprobs"]["content"]} == {()}
        assert (await post(client, self.PATH, messages=MESSAGES))["logprobs"] is None

    async def test_a_stream_has_the_same(self, client: httpx.AsyncClient):
        asked = {"messages": MESSAGES, "logprobs": True, "top_logprobs": 2}
        whole = await post(client, self.PATH, **asked)
        parts = [
            choice["logprobs"]["content"]
            for choice in await streamed(client, self.PATH, **asked)
            if choice["logprobs"]
        ]
        tokens = [token for part in parts for token in part]
        assert [token["token"] for token in tokens] == [
            token["token"] for token in whole["logprobs"]["content"]
        ]
        for token, expected in zip(tokens, whole["logprobs"]["content"], strict=True):
            assert token["logprob"] == pytest.approx(expected["logprob"], abs=1e-5)


class TestCompletions:
    PATH = "/v1/completions"

    async def test_are_those_of_the_hub(self, client: httpx.AsyncClient, hub: AdapterHub):
        choice = await post(client, self.PATH, prompt="Hello w", logprobs=2)
        (completion,) = hub.generate("Hello w", "base", raw=True, max_tokens=6, logprobs=2).completions
        logprobs = choice["logprobs"]
        assert "".join(logprobs["tokens"]) == choice["text"] == completion.text
        expected = [each.logprob for each in completion.logprobs]
        assert logprobs["token_logprobs"] == pytest.approx(expected, abs=1e-5)
        for token, logprob, top in zip(
            logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
        ):
            assert len(top) == 2
            assert top[token] == logprob == max(top.values())
        for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
            assert choice["text"][offset:].startswith(token)

    async def test_a_stream_has_the_same_tokens_at_the_same_offsets(self, client: httpx.AsyncClient):
        asked = {"prompt": "Hello w", "logprobs": 2}
        whole = (await post(client, self.PATH, **asked))["logprobs"]
        parts = [
            choice["logprobs"] for choice in await streamed(client, self.PATH, **asked) if choice["logprobs"]
        ]
        for name in ("tokens", "text_offset"):
            assert [value for part in parts for value in part[name]] == whole[name]

    async def test_zero_is_the_tokens_own_alone(self, client: httpx.AsyncClient):
        logprobs = (await post(client, self.PATH, prompt="Hello w", logprobs=0))["logprobs"]
        assert len(logprobs["token_logprobs"]) == 6
        assert logprobs["top_logprobs"] == [{}] * 6


class TestPrompts:
    """Of the prompt; that the hub's are right is tested in `tests.engine`."""

    PATH = "/v1/completions"
    TEXT = "Hello world, the"

    def expected(self, hub: AdapterHub, **options: object) -> Generation:
        return hub.generate(self.TEXT, "base", raw=True, max_tokens=6, prompt_logprobs=2, **options)

    async def test_an_echo_has_those_of_prompt_and_answer(self, client: httpx.AsyncClient, hub: AdapterHub):
        expected = self.expected(hub, logprobs=2)
        choice = await post(client, self.PATH, prompt=self.TEXT, echo=True, logprobs=2)
        found = [*expected.prompt_logprobs, *expected.completions[0].logprobs]
        logprobs = choice["logprobs"]
        assert "".join(logprobs["tokens"]) == choice["text"] == self.TEXT + expected.text
        assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
        assert logprobs["token_logprobs"][1:] == pytest.approx([one.logprob for one in found[1:]], abs=1e-5)
        assert [max(top.values()) for top in logprobs["top_logprobs"][1:]] == pytest.approx(
            [max(one.top.values()) for one in found[1:]], abs=1e-5
        )
        assert {len(top) for top in logprobs["top_logprobs"][1:]} == {2}
        for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
            assert choice["text"][offset:].startswith(token)

    async def test_a_stream_has_the_same(self, client: httpx.AsyncClient):
        asked = {"prompt": self.TEXT, "echo": True, "logprobs": 2, "n": 2}
        answer = await client.post(self.PATH, json={**ASKED, **asked})
        choices = await streamed(client, self.PATH, **asked)
        for whole in answer.json()["choices"]:
            own = [choice for choice in choices if choice["index"] == whole["index"]]
            parts = [choice["logprobs"] for choice in own if choice["logprobs"]]
            assert "".join(choice["text"] for choice in own) == whole["text"]
            for name in ("tokens", "text_offset"):
                assert [value for part in parts for value in part[name]] == whole["logprobs"][name]
            values = [value for part in parts for value in part["token_logprobs"]]
            assert values[0] is None
            assert values[1:] == pytest.approx(whole["logprobs"]["token_logprobs"][1:], abs=1e-5)

    @pytest.mark.parametrize("stream", [False, True])
    async def test_without_a_token_there_is_the_prompt_alone(
        self, client: httpx.AsyncClient, hub: AdapterHub, stream: bool
    ):
        asked = {"prompt": self.TEXT, "echo": True, "logprobs": 1, "max_tokens": 0}
        choices = (
            await streamed(client, self.PATH, **asked) if stream else [await post(client, self.PATH, **asked)]
        )
        (logprobs,) = [choice["logprobs"] for choice in choices if choice["logprobs"]]
        assert "".join(choice["text"] for choice in choices) == self.TEXT
        assert len(logprobs["tokens"]) == len(hub.encode_prompt(self.TEXT, "base", raw=True))
        assert choices[-1]["finish_reason"] == "length"

    @pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
    async def test_vllms_list_is_by_token_id(self, client: httpx.AsyncClient, hub: AdapterHub, path: str):
        is_chat = "chat" in path
        body = {"messages": MESSAGES} if is_chat else {"prompt": self.TEXT, "n": 2}
        answer = (await client.post(path, json={**ASKED, **body, "prompt_logprobs": 2})).json()
        expected = (
            hub.generate("Hello", "base", max_tokens=6, prompt_logprobs=2) if is_chat else self.expected(hub)
        )
        holders = [answer] if is_chat else answer["choices"]
        for holder in holders:
            first, *others = holder["prompt_logprobs"]
            assert first is None
            for found, wanted in zip(others, expected.prompt_logprobs[1:], strict=True):
                own = found[str(wanted.token_id)]
                assert own["logprob"] == pytest.approx(wanted.logprob, abs=1e-5)
                assert own["rank"] == wanted.rank
                assert own["decoded_token"] == hub.engine.tokenizer.decode([wanted.token_id])
                assert set(found) == {str(token) for token in (wanted.token_id, *wanted.top)}
                assert [found[str(token)]["rank"] for token in wanted.top] == [1, 2]

    async def test_they_are_there_only_where_they_were_asked_for(self, client: httpx.AsyncClient):
        echoed = await post(client, self.PATH, prompt=self.TEXT, echo=True, logprobs=1)
        assert "prompt_logprobs" not in echoed
        asked = await post(client, self.PATH, prompt=self.TEXT, prompt_logprobs=0)
        assert asked["logprobs"] is None
        assert {len(one) for one in asked["prompt_logprobs"][1:]} == {1}

    async def test_each_list_has_as_many_tokens_as_were_asked_for(self, client: httpx.AsyncClient):
        asked = {"prompt": self.TEXT, "echo": True, "logprobs": 1, "prompt_logprobs": 3}
        choice = await post(client, self.PATH, **asked)
        assert {len(top) for top in choice["logprobs"]["top_logprobs"][1:]} == {1}
        assert {len(one) for one in choice["prompt_logprobs"][1:]} <= {3, 4}


class TestTexts:
    def test_a_part_of_a_character_has_no_bytes(self, hub: AdapterHub):
        tokenizer = hub.engine.tokenizer
        texts = TokenTexts(tokenizer)
        parts = tokenizer.encode("\U0001f9ff", add_special_tokens=False)
        assert len(parts) > 1
        assert text_bytes(texts[parts[0]]) is None
        assert text_bytes("ж") == [0xD0, 0xB6]

    def test_a_special_token_has_its_text(self, hub: AdapterHub):
        tokenizer = hub.engine.tokenizer
        token_id = tokenizer.get_vocab()[tokenizer.eos_token]
        assert TokenTexts(tokenizer)[token_id] == tokenizer.eos_token

    def test_a_probability_of_zero_is_a_number_in_json(self, hub: AdapterHub):
        texts = TokenTexts(hub.engine.tokenizer)
        zero = [TokenLogprob(5, -math.inf, {6: -math.inf})]
        chat, text = chat_logprobs(zero, texts), completion_logprobs([5], zero, texts, top=1)
        assert chat["content"][0]["logprob"] == text["token_logprobs"][0] == -9999.0
        assert chat["content"][0]["top_logprobs"][0]["logprob"] == -9999.0
