"""`/v1/responses` through the openai client; texts from the echo engine, calls and JSON from random weights."""

import json
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, Field

from adapterhub import AdapterHub
from adapterhub.server import create_app
from adapterhub.server.generating.response_items import to_messages
from adapterhub.server.protocol.responses import ResponseRequest

NOW = {
    "type": "function",
    "name": "now",
    "description": "Tells the time.",
    "parameters": None,
    "strict": None,
}
ADD = {
    "type": "function",
    "name": "add",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["a"],
        "additionalProperties": False,
    },
}


class Person(BaseModel):
    age: int = Field(ge=0, le=9)


def client_of(app: FastAPI) -> openai.AsyncOpenAI:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    http = httpx.AsyncClient(transport=transport, base_url="http://server/v1")
    return openai.AsyncOpenAI(api_key="none", base_url="http://server/v1", http_client=http, max_retries=0)


@pytest.fixture
def echo(app: FastAPI) -> openai.AsyncOpenAI:
    return client_of(app)


@pytest.fixture(scope="module")
def model_app(model_hub: AdapterHub) -> FastAPI:
    return create_app(model_hub)


@pytest.fixture
def model(model_app: FastAPI) -> openai.AsyncOpenAI:
    return client_of(model_app)


class TestText:
    async def test_has_openais_form(self, echo: openai.AsyncOpenAI):
        response = await echo.responses.create(
            model="json@1", input="Hi", max_output_tokens=9, metadata={"of": "me"}
        )
        assert response.output_text == "[json@1] "
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert (response.model, response.metadata, response.tools) == ("json", {"of": "me"}, [])
        assert response.usage.output_tokens == 9
        assert response.usage.total_tokens == response.usage.input_tokens + 9
        assert response.adapterhub == {"adapter": "json", "version": 1, "route": None}
        assert response.id.startswith("resp_")
        assert response.output[0].status == "incomplete"

    async def test_instructions_reach_the_prompt(self, echo: openai.AsyncOpenAI):
        response = await echo.responses.create(model="base", input="Hi", instructions="Be brief.")
        assert response.output_text.startswith("[base] Be brief.")
        assert response.status == "completed"

    async def test_stream_by_the_clients_helper(self, echo: openai.AsyncOpenAI):
        async with echo.responses.stream(model="json", input="Hi", max_output_tokens=400) as stream:
            events = [event async for event in stream]
            final = await stream.get_final_response()
        assert [events[0].type, events[1].type] == ["response.created", "response.in_progress"]
        assert [event.sequence_number for event in events] == list(range(len(events)))
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert text == final.output_text
        assert text.startswith("[json@1] ")
        assert final.usage.input_tokens > 0

    async def test_frames_have_names(self, client: httpx.AsyncClient):
        asked = {"model": "json", "input": "Hi", "max_output_tokens": 5, "stream": True}
        answer = await client.post("/v1/responses", json=asked)
        assert answer.headers["x-adapterhub-adapter"] == "json"
        frames = [frame.split("\n") for frame in answer.text.strip().split("\n\n")]
        for named, data in frames:
            assert named == f"event: {json.loads(data.removeprefix('data: '))['type']}"
        assert frames[-1][0] == "event: response.incomplete"


def test_items_become_messages():
    items = [
        {"role": "user", "content": "one"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "two"}]},
        {"type": "function_call", "call_id": "a", "name": "now", "arguments": "{}"},
        {"type": "function_call", "call_id": "b", "name": "add", "arguments": '{"a": 1}'},
        {"type": "function_call_output", "call_id": "a", "output": "noon"},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "2"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"role": "developer", "content": [{"type": "input_text", "text": "three"}]},
        {"type": "function_call", "call_id": "c", "name": "now", "arguments": "{oh"},
    ]
    body = ResponseRequest.model_validate({"model": "json", "input": items})
    system, one, two, noon, result, three, alone = to_messages(body.input, "zero")
    assert (system, one) == ({"role": "system", "content": "zero"}, {"role": "user", "content": "one"})
    assert (two["role"], two["content"]) == ("assistant", "two")
    assert [(call["id"], call["function"]["arguments"]) for call in two["tool_calls"]] == [
        ("a", {}),
        ("b", {"a": 1}),
    ]
    assert noon == {"role": "tool", "tool_call_id": "a", "content": "noon"}
    assert result == {"role": "tool", "tool_call_id": "b", "content": "2"}
    assert three == {"role": "system", "content": "three"}
    assert alone["tool_calls"][0]["function"]["arguments"] == "{oh"


class TestCalls:
    @pytest.mark.parametrize(
        ("choice", "names"),
        [
            ("required", {"now", "add"}),
            ({"type": "function", "name": "add"}, {"add"}),
            (
                {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "now"}]},
                {"now"},
            ),
        ],
        ids=["required", "named", "allowed_tools"],
    )
    async def test_required(self, model: openai.AsyncOpenAI, choice: Any, names: set[str]):
        fields = {"model": "json", "tools": [NOW, ADD], "tool_choice": choice, "max_output_tokens": 100}
        response = await model.responses.create(input="Hi", **fields)
        assert {item.type for item in response.output} == {"function_call"}
        assert {item.name for item in response.output} <= names
        assert response.status == "completed"
        for item in response.output:
            json.loads(item.arguments)
        results = [
            {"type": "function_call_output", "call_id": item.call_id, "output": "noon"}
            for item in response.output
        ]
        again = [{"role": "user", "content": "Hi"}, *response.output, *results]
        followed = await model.responses.create(
            input=again, model="json", tools=[NOW, ADD], max_output_tokens=30
        )
        assert followed.usage.input_tokens > response.usage.input_tokens

    async def test_stream(self, model: openai.AsyncOpenAI):
        fields = {
            "tools": [NOW, ADD],
            "tool_choice": "required",
            "max_output_tokens": 100,
            "temperature": 1.0,
        }
        whole = await model.responses.create(model="json", input="Hi", extra_body={"seed": 4}, **fields)
        async with model.responses.stream(
            model="json", input="Hi", extra_body={"seed": 4}, **fields
        ) as stream:
            final = await stream.get_final_response()
        calls = [[(item.name, item.arguments) for item in each.output] for each in (whole, final)]
        assert calls[0] == calls[1]
        assert calls[0]

    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_call_that_a_stop_string_cut_is_incomplete(self, model: openai.AsyncOpenAI, stream: bool):
        fields: dict[str, Any] = {"tools": [NOW, ADD], "tool_choice": "required", "max_output_tokens": 100}
        fields |= {"model": "json", "input": "Hi", "extra_body": {"stop": ['"arguments"']}}
        if stream:
            events = [event async for event in await model.responses.create(stream=True, **fields)]
            response = events[-1].response
        else:
            response = await model.responses.create(**fields)
        (item,) = response.output
        assert (item.type, item.status, item.arguments) == ("function_call", "incomplete", "")
        assert response.status == "completed"


class TestFormat:
    async def test_parse(self, model: openai.AsyncOpenAI):
        response = await model.responses.parse(model="json", input="Hi", text_format=Person)
        assert response.output_parsed.age in range(10)
        assert response.text.format.type == "json_schema"

    async def test_any_object(self, model: openai.AsyncOpenAI):
        text: Any = {"format": {"type": "json_object"}}
        response = await model.responses.create(model="json", input="Hi", text=text, max_output_tokens=60)
        assert isinstance(json.loads(response.output_text), dict)

    async def test_logprobs(self, model: openai.AsyncOpenAI):
        fields: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
        response = await model.responses.create(model="json", input="Hi", max_output_tokens=5, **fields)
        logprobs = response.output[0].content[0].logprobs
        assert len(logprobs) == response.usage.output_tokens
        assert all(len(each.top_logprobs) == 2 and each.logprob <= 0 for each in logprobs)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"store": True}, "store"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tools": [NOW], "tool_choice": {"type": "mcp"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"input": []}, "input"),
        ({"messages": []}, "messages"),
    ],
)
async def test_refused(echo: openai.AsyncOpenAI, fields: dict[str, Any], param: str):
    with pytest.raises(openai.BadRequestError) as caught:
        await echo.responses.create(model="json", input="Hi", extra_body=fields)
    assert caught.value.param == param


async def test_what_is_neutral_is_accepted(echo: openai.AsyncOpenAI):
    assert await echo.responses.create(
        model="json", input="Hi", extra_body={"text": None, "metadata": None, "stream_options": None}
    )
    fields: Any = {"store": False, "background": False, "truncation": "disabled", "user": "me", "include": []}
    response = await echo.responses.create(model="json", input="Hi", **fields)
    assert response.store is False


async def test_an_unknown_adapter_is_refused_before_the_stream(echo: openai.AsyncOpenAI):
    with pytest.raises(openai.NotFoundError) as caught:
        await echo.responses.create(model="nobody", input="Hi", stream=True)
    assert caught.value.code == "model_not_found"
