"""TemplateCollection: what is rendered, what is reported, the subset of Jinja, and the limits."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.agent_tools.templates import Template, TemplateCollection
from adapterhub.agent_tools.templates.template import MAX_RENDER_SECONDS
from adapterhub.errors import ToolError

SHIPPED = ("prompt", "chat", "few_shot", "email", "bug_report", "readme", "report", "json_schema")


def test_the_prompt_has_its_three_parts():
    fields = {"instruction": "Translate", "input": "cat"}
    assert TemplateCollection()["prompt"].render(fields).text == (
        "### Instruction:\nTranslate\n\n### Input:\ncat\n\n### Response:"
    )
    assert (
        TemplateCollection()["prompt"].render({"instruction": "Переведи"}, "ru").text
        == "### Инструкция:\nПереведи\n\n### Ответ:"
    )


def test_every_template_is_there_in_both_languages():
    assert tuple(TemplateCollection()) == SHIPPED
    for name in SHIPPED[:-1]:
        template = TemplateCollection()[name]
        assert set(template.texts) == {"en", "ru"}
        english, russian = (Template({"en": text}) for text in template.texts.values())
        assert (english.required, english.optional) == (russian.required, russian.optional)
        rendered = template.render(dict.fromkeys(template.required, "x"), "ru")
        assert not rendered.missing
        assert any("а" <= letter <= "я" for letter in rendered.text.lower())


def test_missing_and_unknown_fields_are_reported():
    rendered = TemplateCollection()["email"].render({"subject": "Hi", "body": "Text", "color": "red"})
    assert rendered.missing == ("recipient", "sender")
    assert rendered.unknown == ("color",)
    assert "Dear {{ recipient }}," in rendered.text


def test_entries_of_a_list():
    examples = [{"input": "1", "output": "one"}, {"input": "2"}]
    rendered = TemplateCollection()["few_shot"].render(
        {"task": "Name it", "examples": examples, "query": "3"}
    )
    assert (
        "Input: 1\nOutput: one\n\nInput: 2\nOutput: {{ examples.output }}\n\nInput: 3\nOutput:"
        in rendered.text
    )
    assert rendered.missing == ("examples.output",)
    steps = TemplateCollection()["bug_report"].render({"steps": ["open", "close"]})
    assert "- open\n- close" in steps.text


@given(
    st.text()
    | st.sampled_from(["{{ a }}", "{% if a %}", "{% for b in a %}{{ b }}{% endfor %}", "{# a #}", "\\1"])
)
def test_a_value_is_never_read_as_a_template(value: str):
    rendered = Template({"en": "<{{a}}|{{b}}>"}).render({"a": value, "b": "{{a}}"})
    assert rendered.text == f"<{value}|{{{{a}}}}>"
    assert not rendered.missing


def test_a_json_schema():
    properties = [
        {"name": "age", "type": "integer"},
        {"name": "имя", "required": "no", "type": "word"},
        {"type": "null"},
    ]
    rendered = TemplateCollection()["json_schema"].render(
        {"title": 'A "person"', "properties": properties, "x": "y"}
    )
    schema = json.loads(rendered.text)
    assert schema["title"] == 'A "person"'
    assert schema["properties"] == {"age": {"type": "integer"}, "имя": {}}
    assert schema["required"] == ["age"]
    assert rendered.missing == ("properties.name",)
    assert rendered.unknown == ("x", "type word")


def test_a_property_that_is_given_again_is_reported():
    properties = [
        {"name": "a", "type": "array"},
        {"name": "b", "required": False},
        {"name": "c", "required": "No"},
        {"name": "a", "required": "no"},
        {"name": "a"},
    ]
    rendered = TemplateCollection()["json_schema"].render({"title": "P", "properties": properties})
    schema = json.loads(rendered.text)
    assert schema["properties"] == {"a": {"type": "array"}, "b": {"type": "string"}, "c": {"type": "string"}}
    assert schema["required"] == ["a"]
    assert rendered.unknown == ("repeated property a",)


def test_numbers_are_values():
    fields = {"subject": 3, "recipient": 1.5, "body": [1, 2], "sender": True, "to": None}
    rendered = TemplateCollection()["email"].render(fields)
    assert rendered.text == "Subject: 3\n\nDear 1.5,\n\n- 1\n- 2\n\nKind regards,\ntrue"
    assert not rendered.missing
    examples = [{"input": 1, "output": 2}]
    shots = TemplateCollection()["few_shot"].render({"task": "Add", "examples": examples, "query": 0})
    assert "Input: 1\nOutput: 2\n\nInput: 0\nOutput:" in shots.text


@pytest.mark.parametrize("value", [object(), {"a": "b"}, [["a"]], [{"a": ["b"]}], {1: 2}, b"x"])
@pytest.mark.parametrize("name", ["email", "json_schema"])
def test_a_value_that_cannot_be_rendered(name: str, value: object):
    with pytest.raises(ToolError, match="cannot be rendered"):
        TemplateCollection()[name].render({"title": value})


def test_a_number_that_python_does_not_write():
    with pytest.raises(ToolError, match="more than 4300 digits"):
        TemplateCollection()["email"].render({"subject": 10**5000})


def test_adding_a_template_changes_no_other_collection():
    more = TemplateCollection().with_template(
        "note", {"en": "Note: {{text}}", "ru": "Заметка: {{text}}"}, "a note"
    )
    assert more["note"].render({"text": "да"}, "ru").text == "Заметка: да"
    assert more["note"].required == ("text",)
    assert "note" not in TemplateCollection()
    assert (
        TemplateCollection().with_template("note", "{{text}}")["note"].render({"text": "да"}, "ru").text
        == "да"
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Bad name", "x"),
        ("note", ""),
        ("note", {}),
        ("note", {"de": "x"}),
        ("note", "{% if a %}x"),
        ("note", "{{ a"),
        ("note", "{{ a | no_such_filter }}"),
        ("note", "x" * 20_001),
    ],
)
def test_invalid_templates(name: str, text: str):
    with pytest.raises(ToolError):
        TemplateCollection().with_template(name, text)


def test_required_and_optional_fields():
    source = "{{ a }}{% if b %}{{ b }}{{ c }}{% endif %}{% for d in e %}{{ d }}{{ loop.index }}{% endfor %}"
    template = Template({"en": source})
    assert (template.required, template.optional) == (("a", "c"), ("b", "e"))
    assert template.render({"a": "1", "e": ["x", "y"]}).text == "1x1y2"
    assert template.render({"a": "1", "e": "x"}).text == "1x1"
    assert Template({"en": "{% if a %}{{ a }}{% endif %}{{ a }}"}).required == ("a",)


def test_an_entrys_field_with_the_name_of_a_method():
    template = Template({"en": "{% for each in rows %}{{ each.items }} {{ each.keys }}{% endfor %}"})
    rendered = template.render({"rows": [{"items": "pens"}]})
    assert rendered.text == "pens {{ rows.keys }}"
    assert rendered.missing == ("rows.keys",)


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("{{ a.__class__ }}", "__class__"),
        ("{{ a.__class__.__mro__ }}", "__mro__"),
        ("{{ a['__class__'] }}", "__class__"),
        ("{{ a.upper }}", "upper"),
        ("{{ a.x.y.z }}", "z"),
        ("{{ _missing }}", "_missing"),
    ],
)
def test_no_attribute_can_be_reached(source: str, missing: str):
    template = Template({"en": source})
    try:
        rendered = template.render({"a": "x"})
    except ToolError:  # a field of something that is missing
        assert source.count(".") > 1
        return
    assert rendered.text == f"{{{{ {missing} }}}}"
    assert rendered.missing == (missing,)


def test_an_entrys_attributes_are_fields_too():
    template = Template(
        {"en": "{% for each in rows %}{{ each.missing_field }} {{ each._value }}{% endfor %}"}
    )
    rendered = template.render({"rows": [{"missing_field": "a"}]})
    assert rendered.text == "a {{ rows._value }}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ range(9) }}",
        "{{ a.format(a) }}",
        "{{ a * 1000000000 }}",
        "{{ 'x' * 1000000000 }}",
        "{{ 9 ** 9 ** 9 ** 9 }}",
        "{{ a / 0 }}",
        "{{ a ~ a }}",
        "{{ a[1:] }}",
        "{{ [a, a] }}",
        "{{ a if a else a }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ a | replace('', a) }}",
        "{{ a | attr('upper') }}",
        "{{ '%1000000000d' | format(1) }}",
        "{% set b = a %}{{ b }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for x in a recursive %}{{ loop(a) }}{% endfor %}",
        "{% include 'other' %}",
        "{% import 'other' as other %}",
        "{% extends 'other' %}",
        "{% block b %}{% endblock %}",
        "{% call a() %}{% endcall %}",
        "{% filter upper %}a{% endfilter %}",
        "{% with b = a %}{{ b }}{% endwith %}",
        "{{ " + "(" * 9_000 + "a" + ")" * 9_000 + " }}",
        "{% if a %}" * 900 + "{% endif %}" * 900,
        "{% for x in a %}" * 25 + "{% endfor %}" * 25,
        "{{ " + "1" * 5_000 + " }}",
    ],
)
def test_what_is_not_in_the_subset_is_refused_without_being_evaluated(source: str):
    before = time.thread_time()
    with pytest.raises(ToolError, match="not valid"):
        Template({"en": source})
    assert time.thread_time() - before < 1


FIFTY = ["x" * 100] * 50
NESTED = 10


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for x in xs %}" * NESTED + "{% endfor %}" * NESTED, "more than 1 s"),
        ("{% for x in xs %}" * NESTED + "{{ x }}" + "{% endfor %}" * NESTED, "more than"),
        (
            "{% for x in xs %}{% for y in xs %}" + "t" * 19_000 + "{% endfor %}{% endfor %}",
            "4,000,000 characters",
        ),
        ("{{ a | join('" + "t" * 10_000 + "') }}", "4,000,000 characters"),
        ("{{ a" + " | join('0123456789')" * 20 + " }}", "4,000,000 characters"),
        (
            "{% for x in xs %}{% for y in xs %}"
            + "{% if a | title == 'b' %}{% endif %}" * 500
            + "{% endfor %}" * 2,
            "1 s",
        ),
    ],
)
def test_a_hostile_template_ends_at_its_limits(source: str, reason: str):
    template = Template({"en": source})
    before = time.thread_time()
    with pytest.raises(ToolError, match=reason):
        template.render({"xs": FIFTY, "a": "x" * 20_000})
    assert time.thread_time() - before < 1.5 * MAX_RENDER_SECONDS


def test_the_maximum_number_of_filters_ends_in_time():
    template = Template({"en": "{% if a | upper | lower | title == 'b' %}{% endif %}" * 380})
    before = time.thread_time()
    assert template.render({"a": "x" * 20_000}).text == ""
    assert time.thread_time() - before < 1.5 * MAX_RENDER_SECONDS


def test_the_largest_values_of_the_tool_can_be_rendered():
    sections = [{"heading": "h", "text": "x" * 20_000}] * 50
    assert len(TemplateCollection()["report"].render({"sections": sections}).text) > 1_000_000


def test_the_filters_of_the_subset():
    source = (
        "{{ a | upper }} {{ a | title }} {{ a | capitalize }} {{ 'A' | lower }} {{ ' a ' | trim }} {{ xs | length }} "
        "{{ xs | first }} {{ xs | last }} {{ xs | join(', ') }} {{ xs | join }} {% if b is defined %}{% endif %}"
    )
    rendered = Template({"en": source}).render({"a": "one two", "xs": ["1", "2", "3"]})
    assert rendered.text == "ONE TWO One Two One two a a 3 1 3 1, 2, 3 123 "
