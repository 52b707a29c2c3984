"""The tools: their results, the arguments that they refuse, and that none raises."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.utils.function_calling import convert_to_openai_tool
from llguidance import LLMatcher
from pydantic import ValidationError

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.agent_tools.content_rules.validation import MAX_SECONDS
from adapterhub.agent_tools.templates import TemplateCollection
from adapterhub.langchain import AdapterToolkit
from adapterhub.langchain.tools import (
    content_validator,
    create_template_tool,
    template_generator,
    text_formatter,
)


@pytest.fixture
def hub(tiny_registry: Path) -> AdapterHub:
    return AdapterHub(EchoEngine(), AdapterRegistry(tiny_registry))


def call(made, **args):
    """The message that an agent gets."""
    return made.invoke({"type": "tool_call", "id": "1", "name": made.name, "args": args})


@pytest.mark.spec("4-F5", "4-F6")
def test_text_formatter():
    assert text_formatter.invoke({"text": "Раз два три", "width": 10, "indent": 2}) == "  Раз два\n  три"
    assert text_formatter.invoke("plain") == "plain"


@pytest.mark.spec("4-F5")
def test_template_generator():
    message = call(template_generator, template_type="prompt", fields={"instruction": "Hi", "colour": "red"})
    assert message.content == "### Instruction:\nHi\n\n### Response:\n\n[unknown fields: colour]"
    assert message.artifact == {
        "text": "### Instruction:\nHi\n\n### Response:", "missing": [], "unknown": ["colour"]
    }  # fmt: skip
    assert call(template_generator, template_type="email").artifact["missing"][0] == "subject"


def test_template_generator_with_a_custom_template():
    made = create_template_tool(
        TemplateCollection().with_template("note", {"ru": "Заметка: {{ text }}"}, "a note")
    )
    assert (
        made.invoke({"template_type": "note", "fields": {"text": "{{text}}"}, "language": "ru"})
        == "Заметка: {{text}}"
    )
    assert "note (a note): text" in made.args["template_type"]["description"]
    with pytest.raises(ValidationError):
        template_generator.invoke({"template_type": "note"})


def test_template_generator_takes_numbers_and_reports_repeated_fields():
    fields = {"subject": 3, "recipient": "Ann", "body": 1.5, "sender": False, "to": None}
    message = call(template_generator, template_type="email", fields=fields)
    assert message.content == "Subject: 3\n\nDear Ann,\n\n1.5\n\nKind regards,\nfalse"
    properties = [{"name": "a"}, {"name": "a", "type": "null"}]
    message = call(
        template_generator, template_type="json_schema", fields={"title": 1, "properties": properties}
    )
    assert message.content.endswith("[unknown fields: repeated property a]")
    assert message.artifact["unknown"] == ["repeated property a"]


@pytest.mark.spec("4-F5")
def test_content_validator():
    rules = [{"rule": "not_empty"}, {"rule": "json"}]
    message = call(content_validator, text="[1,]", rules=rules)
    assert message.content.startswith("failed 1 of 2 rules\n- json: not JSON")
    assert message.artifact["passed"] is False
    assert message.artifact["results"][1]["column"] == 4
    assert message.status == "success"
    assert call(content_validator, text="[1]", rules=rules).content == "passed: not_empty, json"


@pytest.mark.parametrize(
    "rule",
    [
        {"rule": "regex", "pattern": "(a+)+$"},
        {"rule": "json_schema", "json_schema": {"pattern": "(a+)+$"}},
    ],
)
def test_the_validator_answers_soon_on_hostile_arguments(rule: dict):
    before = time.thread_time()
    message = call(content_validator, text='"' + "a" * 30_000 + '!"', rules=[rule] * 20)
    assert time.thread_time() - before < 1.5 * MAX_SECONDS
    assert {one["reason"] for one in message.artifact["results"]} == {
        "not checked: the time limit was reached"
    }


def test_a_template_that_fails_is_part_of_the_result():
    made = create_template_tool(TemplateCollection().with_template("broken", "{{ a < 1 }}"))
    message = call(made, template_type="broken", fields={"a": "x"})
    assert message.content.startswith("failed: The template could not be rendered: ")
    assert message.artifact["error"] == "tool_error"
    assert message.status == "success"


async def test_tools_are_async_too():
    assert await text_formatter.ainvoke({"text": "a"}) == "a"
    assert (
        await content_validator.ainvoke({"text": "a", "rules": [{"rule": "not_empty"}]})
        == "passed: not_empty"
    )


def test_list_adapters(hub: AdapterHub):
    (lister,) = AdapterToolkit(hub=hub, selected=["list_adapters"]).get_tools()
    message = call(lister, contains="JSON")
    assert message.content == "json: The json adapter."
    assert message.artifact["adapters"][0]["version"] == 1
    assert call(lister, limit=1).content.endswith("and 2 more")
    assert call(lister, contains="нет такого").content == "There are no such adapters."


def test_route_request(hub: AdapterHub):
    (router,) = AdapterToolkit(hub=hub, selected=["route_request"]).get_tools()
    message = call(router, text="write a python function")
    decision = hub.route("write a python function")
    assert message.content.startswith(f"{decision.adapter or 'base'} (confidence ")
    assert message.artifact["adapter"] == decision.adapter
    assert message.artifact["scores"] == dict(decision.scores)


def test_an_error_is_part_of_the_result(hub: AdapterHub, tmp_path: Path):
    empty = AdapterHub(EchoEngine(), AdapterRegistry(tmp_path / "none"))
    (router,) = AdapterToolkit(hub=empty, selected=["route_request"]).get_tools()
    message = call(router, text="hello")
    assert message.status == "success"
    assert message.artifact


def test_the_toolkit(hub: AdapterHub):
    every = ["text_formatter", "template_generator", "content_validator", "list_adapters", "route_request"]
    assert [made.name for made in AdapterToolkit().get_tools()] == every[:3]
    assert [made.name for made in AdapterToolkit(hub=hub).get_tools()] == every
    assert [made.name for made in AdapterToolkit(hub=hub, selected=every[::-1]).get_tools()] == every[::-1]
    templates = TemplateCollection().with_template("note", "{{text}}")
    (made,) = AdapterToolkit(templates=templates, selected=["template_generator"]).get_tools()
    assert "note" in made.args["template_type"]["enum"]
    for wrong in ({"selected": ["none"]}, {"selected": ["list_adapters"]}, {"hub": "x"}):
        with pytest.raises(ValidationError):
            AdapterToolkit(**wrong)


@pytest.mark.spec("4-F5")
@pytest.mark.parametrize(
    ("made", "args"),
    [
        (text_formatter, {"text": "a", "colour": "red"}),
        (text_formatter, {"text": "a" * 100_001}),
        (text_formatter, {"text": "a", "width": 9}),
        (text_formatter, {"text": "a", "width": 20, "indent": 20}),
        (template_generator, {"template_type": "none"}),
        (template_generator, {"template_type": "prompt", "fields": {"a": {"b": "c"}}}),
        (content_validator, {"text": "a", "rules": []}),
        (content_validator, {"text": "a", "rules": [{"rule": "json"}] * 21}),
        (content_validator, {"text": "a", "rules": [{"rule": "json", "x": 1}]}),
    ],
)
def test_invalid_arguments(made, args: dict):
    with pytest.raises(ValidationError):
        made.invoke(args)


def test_every_argument_is_described_and_closed(hub: AdapterHub):
    for made in AdapterToolkit(hub=hub).get_tools():
        schema = made.args_schema.model_json_schema()
        objects = [schema, *schema.get("$defs", {}).values()]
        assert all(part["additionalProperties"] is False for part in objects if "properties" in part), (
            made.name
        )
        for part in objects:
            for name, field in part.get("properties", {}).items():
                assert "description" in field or "const" in field, (made.name, name)


def test_a_grammar_can_enforce_every_schema(hub: AdapterHub):
    for made in AdapterToolkit(hub=hub).get_tools():
        schema = convert_to_openai_tool(made)["function"]["parameters"]
        grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
        assert LLMatcher.validate_grammar(grammar) == "", made.name


FIELDS = st.dictionaries(
    st.text(min_size=1, max_size=5)
    | st.sampled_from(["examples", "properties", "sections", "title", "history"]),
    st.text(max_size=9)
    | st.lists(st.text(max_size=5), max_size=3)
    | st.lists(
        st.dictionaries(st.sampled_from(["name", "type", "items", "input", "user"]), st.text(max_size=5)),
        max_size=3,
    ),
    max_size=5,
)


@settings(max_examples=150)
@given(st.sampled_from(list(TemplateCollection())), FIELDS, st.sampled_from(["en", "ru"]))
def test_the_generator_never_raises_and_is_deterministic(name: str, fields: dict, language: str):
    args = {"template_type": name, "fields": fields, "language": language}
    assert template_generator.invoke(args) == template_generator.invoke(args)


RULES = st.sampled_from(
    [
        {"rule": "markdown_table"}, {"rule": "json"}, {"rule": "email"}, {"rule": "url"}, {"rule": "no_secrets"},
        {"rule": "required_sections", "sections": ["A"]}, {"rule": "language", "language": "ru"},
        {"rule": "json_schema", "json_schema": {"additionalProperties": False, "patternProperties": {"(": {}}}},
        {"rule": "json_schema", "json_schema": {"properties": 3}}, {"rule": "regex", "pattern": "(?<"},
    ]
)  # fmt: skip


@settings(max_examples=150)
@given(
    st.text() | st.sampled_from(["|a|\n|-|\n|", "http://[", "http://a:b", '{"a": 1}', "a|b\n-|-\n\\|\\"]),
    st.lists(RULES, min_size=1, max_size=3),
)
def test_the_validator_never_raises_and_is_deterministic(text: str, rules: list):
    args = {"text": text, "rules": rules}
    assert content_validator.invoke(args) == content_validator.invoke(args)


def test_the_tools_need_no_torch():
    code = "import sys, adapterhub.langchain.tools; print(*[m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
