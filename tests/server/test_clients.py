"""Clients as their users have them, over a socket: openai, llm and litellm."""

from __future__ import annotations

import gc
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from fastapi import FastAPI

from adapterhub import AdapterHub
from adapterhub.server import create_app
from tests.server.live import live

HI: list[Any] = [{"role": "user", "content": "Hi"}]
NOW = {"type": "function", "function": {"name": "now", "description": "Tells the time."}}
ANSWER = "[json@1] ### Instruction:\nHi"
"""How the answer begins."""


@pytest.fixture(scope="module")
def base_url(app: FastAPI) -> Iterator[str]:
    with live(app) as url:
        yield f"{url}/v1"


@pytest.fixture(scope="module")
def model_url(model_hub: AdapterHub) -> Iterator[str]:
    """A server on random weights, which can enforce the grammar of calls."""
    with live(create_app(model_hub)) as url:
        yield f"{url}/v1"


@pytest.fixture(scope="module")
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(base_url: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=base_url, api_key="any", max_retries=0) as client:
        yield client


class TestOpenai:
    def test_models(self, client: openai.OpenAI):
        assert [model.id for model in client.models.list()] == ["echo", "auto", "code", "json", "support"]
        assert client.models.retrieve("json@1").to_dict()["root"] == "json@1"

    def test_chat(self, client: openai.OpenAI):
        answer = client.chat.completions.create(model="json", messages=HI, user="me")
        assert answer.model == "json"
        assert answer.choices[0].message.content.startswith(ANSWER)
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens

    def test_chat_stream(self, client: openai.OpenAI):
        asked = {"model": "json", "messages": HI, "n": 2}
        whole = client.chat.completions.create(**asked)
        with client.chat.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        ) as stream:
            *chunks, last = stream
        texts = {0: "", 1: ""}
        for chunk in chunks:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        assert list(texts.values()) == [choice.message.content for choice in whole.choices]
        assert (last.choices, last.usage) == ([], whole.usage)

    def test_stream_helper(self, client: openai.OpenAI):
        with client.chat.completions.stream(model="json", messages=HI) as stream:
            deltas = [event.delta for event in stream if event.type == "content.delta"]
            final = stream.get_final_completion()
        assert final.choices[0].message.content == "".join(deltas)
        assert final.choices[0].message.content.startswith(ANSWER)

    def test_completions(self, client: openai.OpenAI):
        answer = client.completions.create(model="json", prompt=["a", "b"], echo=True)
        assert [choice.text for choice in answer.choices] == ["a[json@1] a", "b[json@1] b"]
        stream = client.completions.create(model="json", prompt="a", stream=True)
        assert "".join(chunk.choices[0].text for chunk in stream) == "[json@1] a"

    def test_headers_say_who_answered(self, client: openai.OpenAI):
        raw = client.chat.completions.with_raw_response.create(
            model="auto", messages=[{"role": "user", "content": "my printer is broken"}]
        )
        assert raw.headers["x-adapterhub-adapter"] == raw.parse().model == "support"

    def test_errors_are_its_own_classes(self, client: openai.OpenAI):
        with pytest.raises(openai.NotFoundError) as missing:
            client.chat.completions.create(model="nobody", messages=HI)
        assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="json", messages=HI, extra_body={"temprature": 1})
        assert refused.value.param == "temprature"
        with pytest.raises(openai.BadRequestError) as long:
            client.chat.completions.create(
                model="json", messages=[{"role": "user", "content": "a" * 9000}], stream=True
            )
        assert long.value.code == "context_length_exceeded"
        with pytest.raises(openai.InternalServerError, match="Embeddings"):
            client.embeddings.create(model="json", input="Hi")

    async def test_async(self, async_client: openai.AsyncOpenAI):
        answer = await async_client.chat.completions.create(model="json", messages=HI)
        stream = await async_client.chat.completions.create(model="json", messages=HI, stream=True)
        deltas = [chunk.choices[0].delta.content or "" async for chunk in stream]
        assert answer.choices[0].message.content == "".join(deltas)
        assert (await anext(aiter(async_client.models.list()))).id == "echo"


@pytest.fixture
def collected() -> Iterator[None]:
    """Ends clients that leave their connections to the garbage collector, before another test is blamed for it."""
    yield
    gc.collect()


leaves_connections = [
    pytest.mark.usefixtures("collected"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class TestLlm:
    pytestmark = leaves_connections

    @pytest.mark.parametrize("stream", [True, False])
    def test_chat(self, base_url: str, stream: bool):
        from llm.default_plugins.openai_models import Chat

        model = Chat("adapterhub", key="any", model_name="json", api_base=base_url)
        model.needs_key = None
        response = model.prompt(
            "Hi", stream=stream, temperature=0.0, logit_bias={"65": 1}, seed=1, stop="never"
        )
        assert response.text().startswith(ANSWER)
        assert response.usage().output > len(ANSWER)


class TestLitellm:
    pytestmark = leaves_connections

    @pytest.fixture
    def litellm(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the network
        import litellm

        return litellm

    @pytest.mark.parametrize("provider", ["hosted_vllm", "openai"])
    def test_chat(self, litellm: Any, base_url: str, provider: str):
        asked = {"model": f"{provider}/json", "messages": HI, "api_base": base_url, "api_key": "any"}
        answer = litellm.completion(**asked, user="me", presence_penalty=0.1)
        stream = litellm.completion(**asked, stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
        assert answer.choices[0].message.content.startswith(ANSWER)
        assert streamed == litellm.completion(**asked).choices[0].message.content

    @pytest.mark.parametrize("provider", ["hosted_vllm", "openai"])
    def test_tools(self, litellm: Any, model_url: str, provider: str):
        asked = {"model": f"{provider}/json", "messages": HI, "api_base": model_url, "api_key": "any"}
        asked |= {"tools": [NOW], "tool_choice": "required", "max_tokens": 100}
        answer = litellm.completion(**asked, parallel_tool_calls=False)
        stream = litellm.completion(**asked, parallel_tool_calls=False, stream=True)
        streamed = litellm.stream_chunk_builder(list(stream))
        for each in (answer, streamed):
            (call,) = each.choices[0].message.tool_calls
            assert (call.function.name, json.loads(call.function.arguments)) == ("now", {})
            assert each.choices[0].finish_reason == "tool_calls"

    def test_a_prompt_too_long_is_its_own_error(self, litellm: Any, base_url: str):
        with pytest.raises(litellm.ContextWindowExceededError):
            litellm.completion(
                model="hosted_vllm/json",
                messages=[{"role": "user", "content": "a" * 9000}],
                api_base=base_url,
                api_key="any",
            )
