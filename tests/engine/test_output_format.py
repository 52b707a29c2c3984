"""Output formats: how they are described, closed and parsed."""

import datetime
import io
import json
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field, field_validator
from typing_extensions import TypedDict

from adapterhub.engine.output_format import MAX_CHARACTERS, OutputFormat
from adapterhub.errors import GenerationError, InvalidRequestError


class Address(BaseModel):
    street: str
    city: str | None = None


class Person(BaseModel):
    name: str
    home: Address
    tags: dict[str, int] = {}


def schema_of(schema: Any) -> Any:
    made = OutputFormat.of(schema=schema)
    assert made is not None
    return json.loads(made.text)


class TestOf:
    def test_no_argument_is_free_text(self):
        assert OutputFormat.of() is None

    @pytest.mark.parametrize(
        ("given", "kind", "text"),
        [
            ({"regex": "[0-9]+"}, "regex", "[0-9]+"),
            ({"grammar": 'start: "a"'}, "grammar", 'start: "a"'),
            ({"choices": ("да", "no")}, "choices", '["да", "no"]'),
            ({"schema": {"type": "integer"}}, "schema", '{"type": "integer"}'),
            ({"schema": int}, "schema", '{"type": "integer"}'),
        ],
    )
    def test_each_kind(self, given, kind, text):
        made = OutputFormat.of(**given)
        assert made is not None
        assert (made.kind, made.text) == (kind, text)

    def test_equal_descriptions_are_equal_and_hash_alike(self):
        assert OutputFormat.of(schema=Person) == OutputFormat.of(schema=Person)
        assert len({OutputFormat.of(choices=["a"]), OutputFormat.of(choices=["a"])}) == 1
        assert OutputFormat.of(regex="a") != OutputFormat.of(grammar="a")

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"regex": "a", "choices": ["a"]}, "regex and choices were given"),
            ({"choices": []}, "at least one"),
            ({"choices": ["a", ""]}, "none of them empty"),
            ({"choices": "yes"}, "list of texts"),
            ({"choices": [1]}, "list of texts"),
            ({"regex": ""}, "empty"),
            ({"regex": 3}, "takes a text, not int"),
            ({"grammar": ["start"]}, "takes a text, not list"),
            ({"schema": 3}, "not a value of type int"),
            ({"schema": [{"type": "string"}]}, "not a value of type list"),
            ({"schema": "a\0b"}, "not a value of type str"),
            ({"schema": io.StringIO}, "No JSON Schema"),
            ({"schema": {"const": {1, 2}}}, "not a JSON Schema"),
            ({"schema": {"minimum": float("nan")}}, "not a JSON Schema"),
            ({"regex": "a" * (MAX_CHARACTERS + 1)}, str(MAX_CHARACTERS)),
            ({"choices": ["a" * 99] * (MAX_CHARACTERS // 99)}, str(MAX_CHARACTERS)),
        ],
    )
    def test_refused(self, given, message):
        with pytest.raises(InvalidRequestError, match=message):
            OutputFormat.of(**given)

    @pytest.mark.parametrize("wrap", [str, lambda code: [code], lambda code: (code,), str.encode])
    def test_a_text_is_never_evaluated(self, wrap, tmp_path):
        with pytest.raises(InvalidRequestError, match="not a value of type"):
            OutputFormat.of(schema=wrap(f"__import__('pathlib').Path({str(tmp_path / 'made')!r}).touch()"))
        assert not (tmp_path / "made").exists()

    @pytest.mark.parametrize("text", [":", ""])
    def test_a_text_in_a_types_place_is_refused(self, text):
        with pytest.raises(InvalidRequestError, match="No JSON Schema"):
            OutputFormat.of(schema=list[text])

    def test_a_schema_nested_without_end_is_refused(self):
        deep: dict[str, Any] = {}
        for _ in range(100_000):
            deep = {"items": deep}
        with pytest.raises(InvalidRequestError, match="not a JSON Schema"):
            OutputFormat.of(schema=deep)


class TestClosedObjects:
    def test_a_models_objects_take_no_further_keys(self):
        schema = schema_of(Person)
        assert schema["additionalProperties"] is False
        assert schema["$defs"]["Address"]["additionalProperties"] is False
        assert schema["properties"]["tags"]["additionalProperties"] == {"type": "integer"}

    def test_additional_properties_of_a_schema_are_not_changed(self):
        given = {"type": "object", "properties": {}, "additionalProperties": True}
        assert schema_of(given) == given

    def test_property_names_are_not_keywords(self):
        given = {
            "type": "object",
            "properties": {"properties": {"type": "string"}, "allOf": {"type": "string"}},
        }
        assert schema_of(given) == {**given, "additionalProperties": False}

    def test_data_is_not_changed(self):
        value = {"properties": {"a": 1}}
        assert schema_of({"const": value}) == {"const": value}

    @pytest.mark.parametrize(
        "given",
        [
            {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]},
            {"properties": {"a": {}}, "anyOf": [{"properties": {"b": {}}}]},
            {"$defs": {"X": {"properties": {}, "$ref": "#/$defs/Y"}, "Y": {"properties": {}}}},
        ],
    )
    def test_a_schema_that_combines_objects_is_not_changed(self, given):
        assert schema_of(given) == given

    def test_the_callers_schema_is_not_changed(self):
        given = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}}
        before = json.dumps(given)
        OutputFormat.of(schema=given)
        assert json.dumps(given) == before


class TestEach:
    def test_one_format_for_all_prompts(self):
        a, b = OutputFormat.each(2, choices=["x", "y"])
        assert a is b
        assert a is not None
        assert a.text == '["x", "y"]'

    def test_a_format_for_each_prompt(self):
        made = OutputFormat.each(
            4,
            schema=[Person, None, None, None],
            regex=[None, "a", None, None],
            choices=[None, None, ["x"], None],
        )
        assert [one and one.kind for one in made] == ["schema", "regex", "choices", None]

    @pytest.mark.parametrize(
        "given", [{"schema": [int]}, {"regex": ["a", "b", "c"]}, {"choices": [["a"]]}, {"grammar": 7}]
    )
    def test_a_list_must_have_one_element_for_each_prompt(self, given):
        with pytest.raises(InvalidRequestError, match="2 prompts"):
            OutputFormat.each(2, **given)

    def test_two_for_one_prompt_are_refused(self):
        with pytest.raises(InvalidRequestError, match="at most one output format"):
            OutputFormat.each(2, regex=[None, "a"], choices=["x"])


class TestParsing:
    def parse(self, text: str, **given: Any) -> Any:
        made = OutputFormat.of(**given)
        assert made is not None
        return made.parse(text)

    def test_a_models_answer_is_its_instance(self):
        text = '{"name": "Ann", "home": {"street": "A1"}}'
        assert self.parse(text, schema=Person) == Person(name="Ann", home=Address(street="A1"))

    def test_other_types(self):
        class Point(TypedDict):
            x: int

        assert self.parse('{"x": 1}', schema=Point) == {"x": 1}
        assert self.parse('["2026-01-02"]', schema=list[datetime.date]) == [datetime.date(2026, 1, 2)]
        assert self.parse('"a"', schema=Literal["a", "b"]) == "a"

    def test_a_json_schemas_answer_is_its_value(self):
        assert self.parse('{"a": [1]}', schema={"type": "object"}) == {"a": [1]}

    def test_other_kinds_are_text(self):
        assert self.parse("12", regex="[0-9]+") == "12"

    def test_errors_of_a_types_own_checks_do_not_contain_the_answer(self):
        class Even(BaseModel):
            price: Annotated[Decimal, Field(max_digits=3)]
            number: int

            @field_validator("number")
            @classmethod
            def even(cls, value: int) -> int:
                if value % 2:
                    raise ValueError("it is odd")
                return value

        with pytest.raises(GenerationError, match="number: Value error, it is odd") as caught:
            self.parse('{"price": 1, "number": 7654321}', schema=Even)
        assert "7654321" not in str(caught.value)
        with pytest.raises(GenerationError, match="price"):
            self.parse('{"price": 12345, "number": 2}', schema=Even)

    def test_text_that_is_not_json(self):
        with pytest.raises(GenerationError, match="not JSON"):
            self.parse("{", schema={"type": "object"})
