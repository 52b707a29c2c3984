"""Tools in Chat Completions, from random weights: what holds does not depend on the model."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from adapterhub import AdapterHub
from adapterhub.server import create_app

PATH = "/v1/chat/completions"
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "maximum": 99}, "b": {"enum": ["one", "two"]}},
            "required": ["a", "b"],
        },
        "strict": True,
    },
}
NOW = {"type": "function", "function": {"name": "now", "description": "Tells the time."}}
TOOLS = [ADD, NOW]
CLOSED = ADD["function"]["parameters"] | {"additionalProperties": False}
CLOSED_ADD = {"type": "function", "function": ADD["function"] | {"parameters": CLOSED}}
HI = {"role": "user", "content": "Hi"}
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "now", "arguments": "{}"}}],
}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "noon"}]}
NAMED = {"type": "function", "function": {"name": "now"}}
CALL_ADD = {"type": "function", "function": {"name": "add"}}
NAMED_F = {"type": "function", "function": {"name": "f"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}


@pytest.fixture(scope="module")
def http(model_hub: AdapterHub) -> Iterator[httpx.AsyncClient]:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(create_app(model_hub)), base_url="http://server/v1"
    )


@pytest.fixture
def client(http: httpx.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="none", base_url="http://server/v1", http_client=http, max_retries=0)


def asked(**fields: Any) -> dict[str, Any]:
    common = {
        "model": "json",
        "messages": [HI],
        "tools": TOOLS,
        "max_tokens": 100,
        "temperature": 1.0,
        "seed": 3,
    }
    return common | fields


def check(calls: list[Any]) -> None:
    schemas = {tool["function"]["name"]: tool["function"].get("parameters", {}) for tool in TOOLS}
    for call in calls:
        assert call.type == "function"
        assert call.id.startswith("call_")
        jsonschema.validate(json.loads(call.function.arguments), schemas[call.function.name])


class TestStop:
    """A stop string may cut an answer within a call."""

    BEGIN = "<tool_call>"

    async def streamed(self, client: openai.AsyncOpenAI, stop: str) -> tuple[str, list[Any], str]:
        """Text, parts of calls and finish reason of a stream."""
        chunks = await client.chat.completions.create(
            **asked(tool_choice="required", stop=[stop], stream=True)
        )
        choices = [chunk.choices[0] async for chunk in chunks]
        parts = [part for choice in choices for part in choice.delta.tool_calls or ()]
        return "".join(choice.delta.content or "" for choice in choices), parts, choices[-1].finish_reason

    @pytest.mark.parametrize("stop", ['"name"', '"arguments"', '"}}', "}"])
    async def test_a_whole_answer_is_the_text_so_far(self, client: openai.AsyncOpenAI, stop: str):
        (choice,) = (await client.chat.completions.create(**asked(tool_choice=CALL_ADD, stop=stop))).choices
        assert choice.finish_reason == "stop"
        assert choice.message.tool_calls is None
        assert choice.message.content.startswith(self.BEGIN)
        assert stop not in choice.message.content

    async def test_a_stream_gives_what_was_held_back_as_text(self, client: openai.AsyncOpenAI):
        text, parts, reason = await self.streamed(client, '"name"')
        assert text.startswith(self.BEGIN)
        assert '"name"' not in text
        assert (parts, reason) == ([], "stop")

    async def test_what_a_stream_has_told_of_a_call_stays(self, client: openai.AsyncOpenAI):
        text, parts, reason = await self.streamed(client, '"arguments"')
        assert text == ""
        assert parts[0].function.name in ("add", "now")
        assert reason == "stop"


class TestChoice:
    @pytest.mark.parametrize(
        ("choice", "names"),
        [
            ("required", {"add", "now"}),
            ({"type": "function", "function": {"name": "add"}}, {"add"}),
            (ALLOWED, {"now"}),
        ],
        ids=["required", "named", "allowed_tools"],
    )
    async def test_a_call_is_required(self, client: openai.AsyncOpenAI, choice: Any, names: set[str]):
        answer = await client.chat.completions.create(**asked(tool_choice=choice))
        (only,) = answer.choices
        assert only.finish_reason == "tool_calls"
        assert only.message.content is None
        assert {call.function.name for call in only.message.tool_calls} <= names
        check(only.message.tool_calls)

    @pytest.mark.parametrize(
        "fields", [{"tool_choice": "none"}, {"tools": []}, {"tools": [], "tool_choice": "auto"}]
    )
    async def test_no_call_is_allowed(self, client: openai.AsyncOpenAI, fields: dict[str, Any]):
        answer = await client.chat.completions.create(**asked(**fields))
        assert answer.choices[0].message.tool_calls is None
        assert answer.choices[0].message.content
        assert answer.choices[0].finish_reason in ("stop", "length")

    async def test_the_model_chooses(self, client: openai.AsyncOpenAI):
        answer = await client.chat.completions.create(**asked(n=6, max_tokens=30))
        assert len(answer.choices) == 6
        for choice in answer.choices:
            check(choice.message.tool_calls or [])
            assert choice.message.content or choice.message.tool_calls

    async def test_one_call_only(self, client: openai.AsyncOpenAI):
        fields = asked(tool_choice="required", parallel_tool_calls=False, n=4, max_tokens=100)
        for choice in (await client.chat.completions.create(**fields)).choices:
            assert len(choice.message.tool_calls) == 1


class TestStream:
    async def test_is_the_whole_answer(self, client: openai.AsyncOpenAI):
        fields = asked(tool_choice="required", n=2, max_tokens=100)
        whole = await client.chat.completions.create(**fields)
        deltas: list[dict[int, dict[str, str]]] = [{}, {}]
        reasons = {}
        async for chunk in await client.chat.completions.create(**fields, stream=True):
            for choice in chunk.choices:
                for call in choice.delta.tool_calls or []:
                    assert isinstance(call.index, int)
                    joined = deltas[choice.index].setdefault(call.index, {"name": "", "arguments": ""})
                    joined["name"] += call.function.name or ""
                    joined["arguments"] += call.function.arguments
                reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
        assert reasons == {0: "tool_calls", 1: "tool_calls"}
        for choice, calls in zip(whole.choices, deltas, strict=True):
            assert list(calls) == list(range(len(choice.message.tool_calls)))
            assert [call.function.model_dump() for call in choice.message.tool_calls] == [
                {"name": call["name"], "arguments": call["arguments"]} for call in calls.values()
            ]

    async def test_by_the_clients_own_helper(self, client: openai.AsyncOpenAI):
        fields = asked(tools=[CLOSED_ADD], tool_choice="required", parallel_tool_calls=False)
        async with client.chat.completions.stream(**fields) as stream:
            events = [event async for event in stream]
            final = await stream.get_final_completion()
        done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
        (call,) = final.choices[0].message.tool_calls
        assert [each.parsed_arguments for each in done] == [call.function.parsed_arguments]
        assert set(call.function.parsed_arguments) == {"a", "b"}


class TestHistory:
    @pytest.mark.parametrize("tools", [TOOLS, []], ids=["tools", "no tools"])
    async def test_calls_and_results_reach_the_prompt(self, client: openai.AsyncOpenAI, tools: list[Any]):
        short = await client.chat.completions.create(**asked(tools=tools, max_tokens=40))
        long = await client.chat.completions.create(
            **asked(tools=tools, messages=[HI, CALLED, RESULT], max_tokens=40)
        )
        assert long.usage.prompt_tokens > short.usage.prompt_tokens

    async def test_arguments_of_another_model_that_are_no_json(self, client: openai.AsyncOpenAI):
        bad = json.loads(json.dumps(CALLED).replace("{}", "{oh"))
        await client.chat.completions.create(**asked(messages=[HI, bad, RESULT], max_tokens=40))


class TestArguments:
    async def test_what_no_grammar_enforces_is_told(self, client: openai.AsyncOpenAI):
        one = {"type": "integer", "enum": [1], "not": {"const": 1}}
        described = {"type": "object", "properties": {"v": one}, "required": ["v"]}
        tool = {"type": "function", "function": {"name": "f", "parameters": described}}
        answer = await client.chat.completions.create(**asked(tools=[tool], tool_choice=NAMED_F))
        streamed = await client.chat.completions.create(
            **asked(tools=[tool], tool_choice=NAMED_F), stream=True
        )
        *_, last = [chunk async for chunk in streamed]
        for said in (answer.adapterhub, last.adapterhub):
            (violation,) = said["invalid_arguments"]
            assert violation.startswith("f: ")


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type", "function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "pattern"),
        ({"tools": [NOW, NOW]}, "tools", "'now'"),
        ({"tools": None, "tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "add, now"),
        ({"tool_choice": {"type": "custom", "custom": {"name": "x"}}}, "tool_choice", "allowed_tools"),
        ({"tool_choice": "maybe"}, "tool_choice", "required"),
        ({"functions": [{"name": "x"}]}, "functions", "tools"),
        ({"function_call": "auto"}, "function_call", "tool_choice"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs", "JSON Schema"),
    ],
)
async def test_refused(client: openai.AsyncOpenAI, fields: dict[str, Any], param: str, said: str):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(
            **{k: v for k, v in asked().items() if k not in fields}, extra_body=fields
        )
    assert caught.value.param == param
    assert said in caught.value.message
