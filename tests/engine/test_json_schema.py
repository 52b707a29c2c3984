"""JSON Schemas: which keywords are enforced, checked afterwards, ignored or refused."""

import json
from typing import Annotated, Any, Literal

import jsonschema
import pytest
import torch
from pydantic import BaseModel, Field

from adapterhub.engine.decoding.grammar_compiler import GrammarCompiler
from adapterhub.engine.decoding.sampler import Logits, Sampler
from adapterhub.engine.json_schema import CHECKED_AFTERWARDS, ENFORCED, GrammarSchema
from adapterhub.engine.output_format import OutputFormat
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.errors import GenerationError, InvalidRequestError
from tests.tiny import VOCABULARY, make_tokenizer


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    return GrammarCompiler(make_tokenizer(), VOCABULARY, {2})


def output_format(schema: Any) -> OutputFormat:
    made = OutputFormat.of(schema=schema)
    assert made is not None
    return made


def answers(compiler: GrammarCompiler, schema: Any, count: int = 12) -> list[Any]:
    """What models of random logits answer."""
    written = []
    for seed in range(count):
        constraint = compiler.constraint(output_format(schema), 60, ())
        random = torch.Generator().manual_seed(seed)
        sampler, tokens = Sampler(SamplingParams(temperature=1.0, seed=seed), 0, torch.device("cpu")), []
        while not constraint.finished:
            (logits,) = Logits.of(torch.randn(1, VOCABULARY, generator=random))
            token, _ = constraint.choose(
                lambda allowed, row=logits, sampler=sampler: sampler.draw(row, allowed), VOCABULARY
            )
            tokens += [] if constraint.ended else [token]
        written.append(json.loads(make_tokenizer().decode(tokens)))
    return written


STRINGS = {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3}
ENFORCEABLE = {
    "names of a pattern": {
        "type": "object",
        "propertyNames": {"pattern": "^[a-z]{1,2}$"},
        "maxProperties": 2,
    },
    "names of an enumeration": {
        "type": "object",
        "propertyNames": {"$ref": "#/$defs/E"},
        "additionalProperties": {"type": "integer"},
        "$defs": {"E": {"enum": ["a", "b"]}},
    },
    "names that leave out a property": {
        "type": "object",
        "propertyNames": {"enum": ["x"]},
        "properties": {"x": {"type": "integer"}, "q": {"type": "integer"}},
    },
    "one of the optional properties": {
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "minProperties": 1,
        "maxProperties": 1,
    },
    "properties without a type": {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
    "union without a type": {"anyOf": [{"type": "integer"}, {"enum": ["x"]}]},
    "reference without a type": {"$ref": "#/$defs/A", "$defs": {"A": {"type": "boolean"}}},
    "an annotation of every kind": {
        "type": "object",
        "title": "T",
        "x-mine": 1,
        "properties": {"title": {"type": "integer", "format": "int32", "deprecated": True}},
        "required": ["title"],
    },
}
CHECKED: dict[str, tuple[dict[str, Any], Any, Any]] = {
    "uniqueItems": ({**STRINGS, "uniqueItems": True}, ["a", "b"], ["a", "a"]),
    "not": ({"type": "integer", "not": {"const": 1}}, 2, 1),
    "contains": ({**STRINGS, "contains": {"const": "a"}}, ["a"], ["b"]),
    "propertyNames": ({"type": "object", "propertyNames": {"maxLength": 2}}, {"ab": 1}, {"abc": 1}),
    "oneOf": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, 1.5, 1),
    "pattern": ({"type": "string", "pattern": r"^(?!\.)[^@]+$"}, "a", ".a"),
    "dependentRequired": (
        {"type": "object", "properties": {"a": {}, "b": {}}, "dependentRequired": {"a": ["b"]}},
        {"a": 1, "b": 1},
        {"a": 1},
    ),
    "if": ({"type": "integer", "if": {"minimum": 5}, "then": {"multipleOf": 2}}, 6, 7),
    "maxProperties": (
        {"properties": {"a": {}}, "additionalProperties": {"type": "integer"}, "maxProperties": 1},
        {"b": 1},
        {"a": 1, "b": 1},
    ),
    "minProperties": ({"properties": {"a": {}, "b": {}, "c": {}}, "minProperties": 2}, {"a": 1, "b": 1}, {"a": 1}),
}  # fmt: skip


class TestKeywords:
    @pytest.mark.parametrize("name", ENFORCEABLE)
    def test_enforced(self, compiler, name):
        schema = ENFORCEABLE[name]
        assert GrammarSchema(schema).checked_afterwards == []
        for value in answers(compiler, schema):
            jsonschema.validate(value, schema)
            assert isinstance(value, dict) or "properties" not in schema

    @pytest.mark.parametrize("keyword", CHECKED)
    def test_checked_afterwards(self, compiler, keyword):
        schema, valid, invalid = CHECKED[keyword]
        jsonschema.validate(valid, schema)
        wanted = output_format({"type": "object", "properties": {"p": schema}})
        compiler.compile(wanted)
        assert wanted.parse(json.dumps({"p": valid})) == {"p": valid}
        with pytest.raises(GenerationError, match=r"does not pass its schema: .* at \$\.p"):
            wanted.parse(json.dumps({"p": invalid}))
        assert f"{keyword} of p" in GrammarSchema({"properties": {"p": schema}}).checked_afterwards

    @pytest.mark.parametrize(
        "limit", [{"maxProperties": 0}, {"minProperties": 1, "additionalProperties": {}}]
    )
    def test_limits_that_no_grammar_counts_do_not_refuse_a_schema(self, compiler, limit):
        wanted = output_format({"type": "object", "properties": {"a": {}}, **limit})
        assert compiler.compile(wanted).shortest_completion
        with pytest.raises(GenerationError, match="does not pass its schema"):
            wanted.parse('{"a":1}' if "maxProperties" in limit else "{}")

    def test_a_pydantic_type_checks_itself(self, compiler):
        wanted = output_format(set[int])
        compiler.compile(wanted)
        assert wanted.parse("[1,1]") == {1}

    @pytest.mark.parametrize(
        "name", ["int32", "int64", "double", "password", "binary", "byte", "path", "uri-reference", "phone"]
    )
    def test_formats_that_are_annotations(self, compiler, name):
        assert output_format({"type": "string", "format": name}) == output_format({"type": "string"})

    def test_formats_that_are_enforced(self, compiler):
        for value in answers(compiler, {"type": "string", "format": "ipv4"}, 4):
            assert len(value.split(".")) == 4

    def test_no_keyword_is_of_two_kinds(self):
        assert not ENFORCED & CHECKED_AFTERWARDS

    @pytest.mark.parametrize(
        ("part", "reason"),
        [
            ({"type": "strin"}, "Invalid type: strin"),
            ({"type": "integer", "minimum": 3, "maximum": 1}, "Unsatisfiable"),
            ({"type": "string", "pattern": "("}, "regex|unclosed"),
            ({"$ref": "https://example.org/x"}, "not present"),
        ],
    )
    def test_refused_with_the_propertys_name(self, compiler, part, reason):
        item = {"properties": {"bad": part}, "required": ["bad"]}
        schema = {
            "properties": {
                "good": {"type": "string"},
                "list": {"type": "array", "items": item, "minItems": 1},
            },
            "required": ["list"],
        }
        with pytest.raises(InvalidRequestError, match=rf"(?s)({reason}).*, at list\.bad"):
            compiler.compile(output_format(schema))


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    name: str | None = None


class Pets(BaseModel):
    pets: Annotated[
        list[Annotated[Cat | Dog, Field(discriminator="kind")]], Field(min_length=1, max_length=2)
    ]


class TestDiscriminators:
    def test_a_discriminator_with_a_default_is_required(self, compiler):
        assert Pets.model_json_schema()["$defs"]["Cat"].get("required") is None
        for value in answers(compiler, Pets):
            assert all(
                pet["kind"] in ("cat", "dog") for pet in Pets.model_validate(value).model_dump()["pets"]
            )
            assert all("kind" in pet for pet in value["pets"])

    def test_the_same_model_outside_the_union_may_leave_it_out(self):
        assert "required" not in GrammarSchema(Cat.model_json_schema()).schema

    def test_inline_alternatives(self):
        cat = {"type": "object", "properties": {"kind": {"const": "cat"}}}
        schema = {"oneOf": [cat], "discriminator": {"propertyName": "kind"}}
        assert GrammarSchema(schema).schema["oneOf"][0]["required"] == ["kind"]
        assert "required" not in cat
