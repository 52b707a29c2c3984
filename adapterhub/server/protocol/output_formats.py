"""What an answer has to match: OpenAI's `response_format` and vLLM's `structured_outputs`."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from adapterhub.server.protocol.fields import ListOf
from adapterhub.server.protocol.sampling import GenerationBody


class JsonSchemaFormat(BaseModel):
    """A named JSON Schema."""

    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    """What no grammar can enforce of it, such as `uniqueItems`, is up to the caller."""
    strict: bool | None = None
    """No effect: answers always match."""


class ResponseFormat(BaseModel):
    """OpenAI's `response_format` of Chat Completions."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _has_schema(self) -> Self:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("the type json_schema needs a json_schema with a schema")
        return self


class StructuredOutputs(BaseModel):
    """vLLM's `structured_outputs`; exactly one of its fields."""

    model_config = ConfigDict(extra="allow")

    json_: str | dict[str, Any] | None = Field(None, alias="json")
    """A JSON Schema, as an object or as text."""
    regex: str | None = None
    """A regular expression that the whole answer matches, in the dialect of Rust's `regex`."""
    choice: ListOf[str] | None = Field(None, min_length=1)
    """The texts that the answer is chosen from."""
    grammar: str | None = None
    """A context-free grammar, in llguidance's dialect of Lark or in GBNF."""
    json_object: bool | None = None
    """Any JSON object."""
    structural_tag: None = None
    """Not supported."""

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        unknown = next(iter(self.model_extra or {}), None)
        if unknown is not None:
            raise ValueError(f"there is no {unknown[:100]!r} in it")
        given = (self.json_, self.regex, self.choice, self.grammar, self.json_object or None)
        if sum(each is not None for each in given) != 1:
            raise ValueError("exactly one of json, regex, choice, grammar and json_object is needed")
        return self


class FormattedBody(GenerationBody):
    """A request whose answer may have to match something. At most one of the fields asks for it."""

    response_format: ResponseFormat | None = None
    """OpenAI's: any text, any JSON object, or JSON of a schema."""
    structured_outputs: StructuredOutputs | None = None
    """vLLM's: JSON of a schema, a regular expression, a grammar or a choice."""
    guided_json: str | dict[str, Any] | None = None
    """An older name of `structured_outputs.json`."""
    guided_regex: str | None = None
    """An older name of `structured_outputs.regex`."""
    guided_choice: ListOf[str] | None = Field(None, min_length=1)
    """An older name of `structured_outputs.choice`."""
    guided_grammar: str | None = None
    """An older name of `structured_outputs.grammar`."""

    @property
    def has_grammar(self) -> bool:
        """Whether a grammar, or a schema that is a text, may have to be read, which is not for an event loop."""
        return bool(self.structured_outputs or self.guided_grammar or isinstance(self.guided_json, str))
