"""Output formats of Chat Completions, from random weights."""

import json
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel, Field

from adapterhub import AdapterHub
from adapterhub.server import create_app

SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["age"],
    "additionalProperties": False,
}
GBNF = 'root ::= "age " digit\ndigit ::= "1" | "2"\n'
LARK = 'start: "age " ("1" | "2")'


class Person(BaseModel):
    age: int = Field(ge=0, le=9)


@pytest.fixture(scope="module")
def http(model_hub: AdapterHub) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(model_hub))
    return httpx.AsyncClient(transport=transport, base_url="http://server/v1")


@pytest.fixture
def client(http: httpx.AsyncClient) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key="none", base_url="http://server/v1", http_client=http, max_retries=0)


def asked(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "How old?"}]
    return {"model": "json", "messages": messages, "max_tokens": 60, "temperature": 1.0, "seed": 1} | fields


async def text_of(client: openai.AsyncOpenAI, **fields: Any) -> str:
    answer = await client.chat.completions.create(**asked(), extra_body=fields)
    assert answer.choices[0].finish_reason == "stop"
    return answer.choices[0].message.content


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}},
        {"structured_outputs": {"json": SCHEMA}},
        {"structured_outputs": {"json": json.dumps(SCHEMA)}},
        {"guided_json": SCHEMA},
        {"guided_json": json.dumps(SCHEMA)},
    ],
)
async def test_json_of_a_schema(client: openai.AsyncOpenAI, fields: dict[str, Any]):
    Person.model_validate_json(await text_of(client, **fields))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_ends_the_answer_in_its_middle(client: openai.AsyncOpenAI, stream: bool):
    fields = {"guided_choice": ["left, right"], "stop": [", r"]}
    answer = await client.chat.completions.create(**asked(stream=stream), extra_body=fields)
    if stream:
        choices = [chunk.choices[0] async for chunk in answer]
        assert "".join(choice.delta.content or "" for choice in choices) == "left"
        assert choices[-1].finish_reason == "stop"
    else:
        assert answer.choices[0].message.content == "left"
        assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    "fields",
    [{"response_format": {"type": "json_object"}}, {"structured_outputs": {"json_object": True}}],
)
async def test_any_object(client: openai.AsyncOpenAI, fields: dict[str, Any]):
    assert isinstance(json.loads(await text_of(client, **fields)), dict)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("regex", "age [12]"), ("choice", ["age 1", "age 2"]), ("grammar", LARK), ("grammar", GBNF)],
    ids=["regex", "choice", "Lark", "GBNF"],
)
@pytest.mark.parametrize("older", [False, True], ids=["structured_outputs", "guided"])
async def test_vllms_formats(client: openai.AsyncOpenAI, kind: str, value: Any, older: bool):
    fields = {f"guided_{kind}": value} if older else {"structured_outputs": {kind: value}}
    assert await text_of(client, **fields) in ("age 1", "age 2")


async def test_any_text(client: openai.AsyncOpenAI):
    answer = await client.chat.completions.create(**asked(), response_format={"type": "text"})
    assert answer.choices[0].finish_reason == "length"


async def test_the_clients_parse_helper(client: openai.AsyncOpenAI):
    answer = await client.chat.completions.parse(**asked(), response_format=Person)
    assert answer.choices[0].message.parsed.age in range(10)


async def test_a_stream_matches_too(client: openai.AsyncOpenAI):
    async with client.chat.completions.stream(**asked(), response_format=Person) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.parsed.age in range(10)


async def test_calls_or_an_object(client: openai.AsyncOpenAI):
    tool = {"type": "function", "function": {"name": "now"}}
    described = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
    answer = await client.chat.completions.create(**asked(n=6), tools=[tool], response_format=described)
    for choice in answer.choices:
        if not choice.message.tool_calls:
            Person.model_validate_json(choice.message.content)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"structural_tag": "{}"}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"json": "{oh"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "[]"}}, "structured_outputs.json"),
        ({"guided_grammar": "root ::= ("}, "guided_grammar"),
        ({"guided_grammar": "root ::= missing"}, "guided_grammar"),
        ({"guided_json": SCHEMA, "guided_regex": "a"}, "guided_regex"),
        ({"guided_json": SCHEMA, "response_format": {"type": "json_object"}}, "guided_json"),
        ({"guided_decoding_backend": "outlines"}, "guided_decoding_backend"),
    ],
)
async def test_refused(client: openai.AsyncOpenAI, fields: dict[str, Any], param: str):
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(**asked(), extra_body=fields)
    assert caught.value.param == param


@pytest.mark.parametrize("regex", ["(", "a(?=b)"])
async def test_a_regex_that_cannot_be_enforced(client: openai.AsyncOpenAI, regex: str):
    with pytest.raises(openai.BadRequestError, match="regex"):
        await text_of(client, guided_regex=regex)


@pytest.mark.parametrize("stream", [False, True])
async def test_text_completions_too(client: openai.AsyncOpenAI, stream: bool):
    formatted = {"structured_outputs": {"choice": ["age 1", "age 2"]}}
    fields: Any = {"model": "json", "prompt": ["Age?", "Old?"], "max_tokens": 60, "extra_body": formatted}
    answer = await client.completions.create(**fields, stream=stream)
    texts = ["", ""]
    for part in [part async for part in answer] if stream else [answer]:
        for choice in part.choices:
            texts[choice.index] += choice.text
    assert set(texts) <= {"age 1", "age 2"}
