"""Schemas of tools and of structured output reach the grammar as their authors wrote them."""

import enum
import json
import pathlib
import threading
from dataclasses import dataclass
from typing import Any, Literal

import jsonschema
import pytest
import torch
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from pydantic import BaseModel

from adapterhub import AdapterHub
from adapterhub.engine.decoding.grammar_compiler import GrammarCompiler
from adapterhub.engine.output_format import MAX_CHARACTERS, OutputFormat
from adapterhub.errors import InvalidRequestError
from adapterhub.langchain import AdapterToolkit, ChatAdapterHub
from adapterhub.langchain.structured_output import SchemaOutputParser
from adapterhub.langchain.tool_schema import json_schema_of, openai_tool
from adapterhub.tool_calling.call_format import HERMES
from adapterhub.tool_calling.tool_choice import ToolChoice, argument_violation
from tests.tiny import VOCABULARY, make_tokenizer


class Node(BaseModel):
    """A node."""

    value: Literal[1, 2]
    children: list["Node"] = []


class Tint(enum.Enum):
    RED = "red"


@dataclass
class Point:
    x: int
    y: int


@tool
def walk(root: Node) -> str:
    """Walks a tree."""
    return str(root)


@tool
def tag(names: set[str]) -> str:
    """Sets tags."""
    return str(names)


@tool
def upload(data: bytes, to: pathlib.Path) -> str:
    """Uploads."""
    return str(to)


def plain(root: Node, depth: int = 1) -> str:
    """Walks.

    Args:
        root: Where.
        depth: How far.
    """
    return f"{root} {depth}"


A = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
OBJECTS: dict[str, dict[str, Any]] = {
    "anyOf": {"title": "U", "anyOf": [A]},
    "$ref": {"title": "R", "$ref": "#/$defs/A", "$defs": {"A": A}},
    "allOf": {"title": "L", "allOf": [A]},
    "properties": {"title": "N", **{key: A[key] for key in ("properties", "required")}},
}
VALUES: dict[str, dict[str, Any]] = {
    "enum": {"title": "E", "enum": ["a", "b"]},
    "const": {"title": "C", "const": "yes"},
    "array": {"title": "Y", "type": "array", "items": {"const": 1}, "maxItems": 2},
}


@pytest.fixture
def model(live_hub: AdapterHub) -> ChatAdapterHub:
    return ChatAdapterHub(hub=live_hub, max_tokens=100, temperature=1.0, seed=3)


def raw_tool(name: str, **of_v: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"v": of_v}, "required": ["v"]}
    return {"type": "function", "function": {"name": name, "description": "d", "parameters": parameters}}


class TestUnchanged:
    @pytest.mark.parametrize("given", [walk, plain, Node])
    def test_recursion_stays(self, given):
        parameters = openai_tool(given)["function"]["parameters"]
        definitions = parameters["$defs"]["Node"]
        assert definitions["properties"]["children"]["items"] == {"$ref": "#/$defs/Node"}

    def test_descriptions_stay_and_titles_of_names_go(self):
        parameters = openai_tool(plain)["function"]["parameters"]
        assert parameters["properties"]["depth"] == {
            "default": 1,
            "description": "How far.",
            "type": "integer",
        }
        assert "title" not in json.dumps(parameters)

    def test_a_property_named_title_stays(self):
        class Book(BaseModel):
            title: str

        assert openai_tool(Book)["function"]["parameters"]["properties"].keys() == {"title"}

    @pytest.mark.parametrize("name", OBJECTS | VALUES)
    def test_json_schemas_are_not_touched(self, name):
        schema = (OBJECTS | VALUES)[name]
        assert json_schema_of(schema) == schema

    @pytest.mark.parametrize("key", ["parameters", "input_schema"])
    def test_functions_of_openai_and_anthropic(self, key):
        assert json_schema_of({"name": "f", key: A}) == {"title": "f", **A}

    @pytest.mark.parametrize(
        ("given", "schema"),
        [
            (list[int], {"type": "array", "items": {"type": "integer"}}),
            (Literal["a"], {"const": "a", "type": "string"}),
            (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}),
        ],
    )
    def test_types(self, given, schema):
        assert json_schema_of(given) == schema


class TestStructuredOutput:
    @pytest.mark.parametrize("name", OBJECTS)
    @pytest.mark.parametrize("method", ["json_schema", "function_calling"])
    def test_objects_without_a_type(self, model, name, method):
        answer = model.with_structured_output(OBJECTS[name], method=method).invoke("x")
        assert answer in ({"a": 1}, {"a": 2})

    @pytest.mark.parametrize("name", VALUES)
    def test_values(self, model, name):
        jsonschema.validate(model.with_structured_output(VALUES[name]).invoke("x"), VALUES[name])
        with pytest.raises(InvalidRequestError, match=f"tool '{VALUES[name]['title']}' cannot be enforced"):
            model.with_structured_output(VALUES[name], method="function_calling")

    @pytest.mark.parametrize(
        ("given", "kind"),
        [(list[bool], list), (Tint, Tint), (Point, Point), (Literal["a", "b"], str), (Node, Node)],
    )
    def test_types_as_in_generate(self, model, live_hub, given, kind):
        assert isinstance(model.with_structured_output(given).invoke("x"), kind)
        assert isinstance(live_hub.generate("x", schema=given, max_tokens=100, temperature=1.0).parsed, kind)

    def test_what_no_grammar_enforces_is_checked(self):
        parser = SchemaOutputParser({"type": "array", "uniqueItems": True})
        assert parser.parse("[1,2]") == [1, 2]
        with pytest.raises(OutputParserException, match="does not pass its schema"):
            parser.parse("[1,1]")

    def test_partial_answers_are_not_checked(self, model):
        *_, last = model.with_structured_output(A).stream("x")
        assert last in ({"a": 1}, {"a": 2})


class TestTools:
    def test_calls_of_a_recursive_tool(self, model):
        for seed in range(4):
            (call,) = (
                model.bind_tools([walk], tool_choice="any", parallel_tool_calls=False, seed=seed)
                .invoke("x")
                .tool_calls
            )
            assert walk.invoke(call).status == "success"

    @pytest.mark.parametrize(
        "given",
        [
            tag,
            upload,
            raw_tool("names", type="object", propertyNames={"pattern": "^[a-z]+$"}),
            raw_tool("neg", type="integer", **{"not": {"const": 1}}),
            raw_tool("mail", type="string", pattern=r"^(?!\.)[^@]+@[^@]+$"),
            raw_tool("dep", type="object", properties={"a": {}}, dependentRequired={"a": ["b"]}),
        ],
    )
    def test_no_keyword_refuses_the_other_tools(self, model, given):
        bound = model.bind_tools([raw_tool("good", type="string"), given], tool_choice="good")
        assert bound.invoke("x").tool_calls
        assert model.bind_tools([given], tool_choice="any").invoke("x").tool_calls

    def test_a_refusal_names_tool_property_and_keyword(self, model):
        with pytest.raises(InvalidRequestError, match=r"the tool 'bad' .* Invalid type: strin, at v"):
            model.bind_tools([raw_tool("good", type="string"), raw_tool("bad", type="strin")])
        with pytest.raises(InvalidRequestError, match=r"the tool 'ref' .* at v"):
            model.bind_tools([raw_tool("ref", **{"$ref": "https://example.org/x"})])

    def test_arguments_that_violate_the_rest_are_named(self):
        function = raw_tool("f", type="array", uniqueItems=True)["function"]
        assert argument_violation(function, {"v": [1, 2]}) is None
        assert "f: The answer does not pass its schema" in str(argument_violation(function, {"v": [1, 1]}))

    def test_a_message_names_them(self, model):
        given = raw_tool("f", type="integer", enum=[1], **{"not": {"const": 1}})
        for answer in (
            model.bind_tools([given], tool_choice="f").invoke("x"),
            sum_of(model.bind_tools([given], tool_choice="f").stream("x")),
        ):
            assert answer.tool_calls[0]["args"] == {"v": 1}
            (violation,) = answer.response_metadata["invalid_arguments"]
            assert violation.startswith("f: ")
            assert "$.v" in violation

    async def test_they_are_checked_off_the_event_loop(self, model, monkeypatch: pytest.MonkeyPatch):
        threads: list[threading.Thread] = []

        def record(*_: Any) -> list[str]:
            threads.append(threading.current_thread())
            return ["wrong"]

        monkeypatch.setattr("adapterhub.langchain.results.argument_violations", record)
        bound = model.bind_tools([raw_tool("f", type="integer", enum=[1])], tool_choice="f")
        streamed = sum_of([chunk async for chunk in bound.astream("x")])
        for answer in (await bound.ainvoke("x"), streamed):
            assert answer.response_metadata["invalid_arguments"] == ["wrong"]
        assert len(threads) == 2
        assert threading.current_thread() not in threads

    def test_sixty_described_tools(self, model):
        tools = [
            raw_tool(f"tool_{number}", type="string", description="What it is. " * 200)
            for number in range(60)
        ]
        assert len(json.dumps(tools)) > 2 * MAX_CHARACTERS
        choice = ToolChoice.of(tools, "any")
        assert len(choice.grammar(make_tokenizer(), HERMES)) < MAX_CHARACTERS

    def test_tools_that_are_too_large_are_spoken_of_as_tools(self):
        tools = [raw_tool(f"tool_{number}", enum=["x" * 2000]) for number in range(60)]
        with pytest.raises(
            InvalidRequestError, match=r"60 tools \(tool_0, tool_1.* descriptions do not count"
        ):
            ToolChoice.of(tools).grammar(make_tokenizer(), HERMES)

    def test_a_tool_is_no_number(self, model):
        with pytest.raises(InvalidRequestError, match="cannot be converted to a function"):
            model.bind_tools([7])


def sum_of(chunks: Any) -> AIMessage:
    total = None
    for chunk in chunks:
        total = chunk if total is None else total + chunk
    assert total is not None
    return total


CALLS = {
    "text_formatter": {"text": "Hello", "width": 20},
    "template_generator": {"fields": {"role": "a"}, "template_type": "prompt"},
    "content_validator": {
        "text": "x",
        "rules": [{"rule": "length", "unit": "words", "maximum": 3}, {"rule": "json"}],
    },
    "list_adapters": {"limit": 3},
    "route_request": {"text": "x"},
}


def test_a_text_is_never_evaluated_as_a_type(tmp_path):
    code = f"__import__('pathlib').Path({str(tmp_path / 'made')!r}).touch()"
    for schema in (code, [code]):
        with pytest.raises(InvalidRequestError, match="not a value of type"):
            json_schema_of(schema)
    assert not (tmp_path / "made").exists()


class TestToolkitInAuto:
    """Every tool of the toolkit can be called, whichever others are bound."""

    @pytest.mark.parametrize("name", CALLS)
    def test_a_model_may_call_it(self, live_hub, name):
        compiler = GrammarCompiler(make_tokenizer(), VOCABULARY, {2})
        tools = [openai_tool(each) for each in AdapterToolkit(hub=live_hub).get_tools()]
        tokenizer = make_tokenizer()
        wanted = OutputFormat.of(grammar=ToolChoice.of(tools).grammar(tokenizer, HERMES))
        assert wanted is not None
        constraint = compiler.constraint(wanted, 400, [])
        call = json.dumps({"name": name, "arguments": CALLS[name]})
        for token in tokenizer.encode(f"<tool_call>\n{call}\n</tool_call>"):
            drawn, _ = constraint.choose(
                lambda allowed, token=token: (
                    token if allowed[token] else int(torch.nonzero(allowed)[0]),
                    None,
                ),
                VOCABULARY,
            )
            assert drawn == token, (tokenizer.decode([drawn]), tokenizer.decode([token]))
