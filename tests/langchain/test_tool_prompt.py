"""What a prompt says of tools: short, and with all that a model needs."""

import json
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool

from adapterhub import AdapterHub
from adapterhub.errors import InvalidRequestError
from adapterhub.langchain import AdapterToolkit, ChatAdapterHub
from adapterhub.langchain.tool_schema import openai_tool
from adapterhub.langchain.tools import content_validator
from adapterhub.tool_calling.tool_prompt import prompt_tools
from tests.langchain.test_tool_schema import walk

# With the tokenizer of the demo base; what they took when schemas were written out whole was 2,343 and 3,680.
MAX_VALIDATOR, MAX_TOOLKIT = 1171, 1840


def parameters(given: Any) -> dict[str, Any]:
    return prompt_tools([openai_tool(given)])[0]["function"]["parameters"]


def raw_tool(given: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "description": "F.", "parameters": given}}


class TestSize:
    def test_half_of_what_whole_schemas_take(self, shipped_hub: AdapterHub):
        tokenizer = shipped_hub.engine.tokenizer
        counts = {
            each.name: len(
                tokenizer.encode(json.dumps(prompt_tools([openai_tool(each)])[0], ensure_ascii=False))
            )
            for each in AdapterToolkit(hub=shipped_hub).get_tools()
        }
        assert counts["content_validator"] <= MAX_VALIDATOR
        assert sum(counts.values()) <= MAX_TOOLKIT, counts

    def test_the_prompt_has_the_short_form(self, shipped_hub: AdapterHub):
        model = ChatAdapterHub(hub=shipped_hub)
        question = [HumanMessage("x")]
        plain = model.get_num_tokens_from_messages(question)
        assert model.get_num_tokens_from_messages(question, [content_validator]) - plain < MAX_VALIDATOR


class TestContent:
    def test_every_argument_and_every_choice_is_there(self, live_hub: AdapterHub):
        for each in AdapterToolkit(hub=live_hub).get_tools():
            short, whole = parameters(each), openai_tool(each)["function"]["parameters"]
            assert short["properties"].keys() == whole["properties"].keys()
            assert short.get("required") == whole.get("required")
            assert all("description" in part for part in short["properties"].values()), each.name

    def test_every_rule_is_there(self):
        rules = parameters(content_validator)["properties"]["rules"]["items"]["anyOf"]
        definitions = openai_tool(content_validator)["function"]["parameters"]["$defs"]
        names = {part["properties"]["rule"]["const"] for part in definitions.values() if "properties" in part}
        assert {rule["properties"]["rule"]["const"] for rule in rules} == names

    def test_what_tells_nothing_is_left_out(self):
        @tool
        def find(text: str, limit: int | None = None, exact: bool = False) -> str:
            """Finds."""
            return text

        assert parameters(find) == {
            "type": "object",
            "properties": {
                "text": {"type": "string"},
                "limit": {"type": "integer"},
                "exact": {"type": "boolean"},
            },
            "required": ["text"],
        }

    def test_null_stays_where_an_argument_is_required(self):
        schema = {"type": "object", "properties": {"a": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}}
        given = {"type": "function", "function": {"name": "f", "parameters": schema}}
        assert prompt_tools([given])[0]["function"]["parameters"] == schema

    def test_values_are_not_keywords(self):
        schema = {"type": "object", "properties": {"title": {"enum": [{"title": "x", "default": None}]}}}
        given = {"type": "function", "function": {"name": "f", "parameters": schema}}
        assert prompt_tools([given])[0]["function"]["parameters"] == schema

    def test_recursive_definitions_stay_once(self):
        short = parameters(walk)
        assert short["$defs"].keys() == {"Node"}
        assert short["properties"]["root"]["$ref"] == "#/$defs/Node"

    @pytest.mark.parametrize("bounds", [{"maxLength": "5"}, {"minimum": None}, {"exclusiveMaximum": True}])
    def test_bounds_that_are_no_numbers_stay(self, bounds: dict[str, Any]):
        given = {"properties": {"a": {"type": "string", **bounds}}}
        assert prompt_tools([raw_tool(given)])[0]["function"]["parameters"]["properties"]["a"] == {
            "type": "string",
            **bounds,
        }

    def test_what_is_not_json(self):
        with pytest.raises(InvalidRequestError, match="'f' is not JSON"):
            prompt_tools([raw_tool({"properties": {"a": {"default": object()}}})])

    def test_each_call_has_its_own(self):
        first, second = (prompt_tools([openai_tool(content_validator)]) for _ in range(2))
        first[0]["function"]["parameters"].clear()
        assert second[0]["function"]["parameters"]

    def test_the_tools_are_not_changed(self):
        given = openai_tool(content_validator)
        before = json.dumps(given)
        prompt_tools([given])
        assert json.dumps(given) == before
