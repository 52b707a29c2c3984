"""TemplateCollection: what is filled in, what is reported, and what is never read again."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.agent_tools.templates import Template, TemplateCollection
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


def test_adding_a_template_changes_no_other_library():
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
    "source",
    [
        "{{ a.__class__ }}",
        "{{ a.__class__.__mro__ }}",
        "{{ range(9) }}",
        "{{ a | upper / 0 }}",
        "{{ a | length / 0 }}",
    ],
)
def test_the_sandbox(source: str):
    template = Template({"en": source})
    try:
        text = template.render({"a": "x"}).text
    except ToolError:
        return
    assert "class" not in text.replace("__class__", "")
    assert text.startswith("{{ ")
