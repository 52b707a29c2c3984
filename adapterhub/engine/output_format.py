"""The form that an answer must have: a schema, a regular expression, a grammar or a list of choices.

This is only the description; `adapterhub.engine.decoding.grammar_constraint` enforces it token by token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from adapterhub.errors import GenerationError, InvalidRequestError, describe_validation

Schema = type[Any] | Mapping[str, Any]
"""A pydantic model or another type that pydantic understands, or a JSON Schema."""

FORMS = ("schema", "regex", "grammar", "choices")
"""The arguments that describe a form; an answer has one of them or none."""

MAX_CHARACTERS = 64 * 1024
"""A larger description is refused: it would take seconds to compile."""

# Keywords that combine object schemas: closing one part would forbid the keys of the others.
_COMBINING = frozenset({"allOf", "if", "not", "dependentSchemas", "unevaluatedProperties"})
_ALTERNATIVES = frozenset({"anyOf", "oneOf", "$ref"})
_DATA = frozenset({"const", "default", "enum", "example", "examples"})  # what they hold is no schema
_NAMED = frozenset(
    {"properties", "patternProperties", "$defs", "definitions"}
)  # they hold names and their schemas


@dataclass(frozen=True)
class OutputFormat:
    """What an answer must look like; make one with `of`.

    Two descriptions of the same form are equal, so an engine compiles them once.

    Attributes:
        kind: Which of the four it is.
        text: JSON Schema, regular expression, Lark grammar, or the choices as a JSON list.
    """

    kind: Literal["schema", "regex", "grammar", "choices"]
    text: str
    _type: TypeAdapter[Any] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.text:
            raise InvalidRequestError(f"{self.kind}= is empty: there is nothing that an answer could be.")
        if len(self.text) > MAX_CHARACTERS:
            raise InvalidRequestError(
                f"{self.kind}= has {len(self.text)} characters, more than {MAX_CHARACTERS}.",
                hint="Ask for less in one answer.",
            )

    @classmethod
    def of(
        cls,
        *,
        schema: Schema | None = None,
        regex: str | None = None,
        grammar: str | None = None,
        choices: Sequence[str] | None = None,
    ) -> Self | None:
        """The form that one of the arguments describes; None if none is given.

        Args:
            schema: A pydantic model, TypedDict, dataclass or other type that pydantic understands, or a JSON Schema.
                Objects that do not say whether they take further keys take none, unless the schema combines objects.
            regex: A regular expression that the whole answer matches, in the dialect of Rust's `regex` crate.
            grammar: A context-free grammar in llguidance's dialect of Lark.
            choices: Texts of which the answer is one.

        Raises:
            InvalidRequestError: More than one is given, or it is not of its kind or too large.
        """
        given = {"schema": schema, "regex": regex, "grammar": grammar, "choices": choices}
        kinds = [kind for kind, value in given.items() if value is not None]
        if len(kinds) > 1:
            raise InvalidRequestError(f"An answer has one form, and {' and '.join(kinds)} were given.")
        if schema is not None:
            return cls._of_schema(schema)
        if choices is not None:
            return cls("choices", _choices(choices))
        if regex is not None:
            return cls("regex", _text(regex, "regex"))
        return None if grammar is None else cls("grammar", _text(grammar, "grammar"))

    @classmethod
    def each(
        cls,
        count: int,
        *,
        schema: Schema | Sequence[Schema | None] | None = None,
        regex: str | Sequence[str | None] | None = None,
        grammar: str | Sequence[str | None] | None = None,
        choices: Sequence[str] | Sequence[Sequence[str] | None] | None = None,
    ) -> list[Self | None]:
        """The forms of several answers; each argument is one for all, or a list with one or None for each.

        Raises:
            InvalidRequestError: As `of`; or a list has not `count` elements.
        """
        columns = {
            "schema": _column(schema, count, "schema", isinstance(schema, list | tuple)),
            "regex": _column(regex, count, "regex", not isinstance(regex, str)),
            "grammar": _column(grammar, count, "grammar", not isinstance(grammar, str)),
            "choices": _column(choices, count, "choices", _nested(choices)),
        }
        made: dict[tuple[int, ...], Self | None] = {}  # one description for many answers is read once
        rows = [{kind: column[place] for kind, column in columns.items()} for place in range(count)]
        keys = [tuple(map(id, row.values())) for row in rows]
        for key, row in zip(keys, rows, strict=True):
            if key not in made:
                made[key] = cls.of(**row)
        return [made[key] for key in keys]

    def parse(self, text: str) -> Any:
        """The value of an answer: what its type makes of it, or its JSON value; the text itself without a schema.

        Raises:
            GenerationError: The text is not valid. A grammar cannot say all that a pydantic type may ask, such as
                the range of a `timedelta`, the digits of a `Decimal` or a validator written in Python.
        """
        if self.kind != "schema":
            return text
        try:
            return self._type.validate_json(text) if self._type else json.loads(text)
        except ValidationError as error:
            reason = describe_validation(error)
            raise GenerationError(f"The answer does not pass its schema's own checks: {reason}.") from error
        except ValueError as error:
            raise GenerationError(f"The answer is not JSON: {error}.") from error

    @classmethod
    def _of_schema(cls, schema: Schema) -> Self:
        adapter: TypeAdapter[Any] | None = None
        try:
            if not isinstance(schema, Mapping):
                adapter = TypeAdapter(schema)
                schema = adapter.json_schema()
            return cls("schema", json.dumps(_closed(schema), ensure_ascii=False, allow_nan=False), adapter)
        except PydanticUserError as error:  # of no type, or of one without a JSON Schema
            raise InvalidRequestError(
                f"No JSON Schema can be made of {schema!r}: {_sentence(error.message)}."
            ) from error
        except (TypeError, ValueError, RecursionError) as error:
            if isinstance(error, InvalidRequestError):
                raise
            raise InvalidRequestError(f"The schema is not a JSON Schema: {_sentence(str(error))}.") from error


def _closed(schema: Mapping[str, Any]) -> Any:
    """The schema with its objects closed: a model could go on adding keys to an open one for ever."""
    return dict(schema) if _combines(schema) else _close(schema)


def _combines(node: Any) -> bool:
    if isinstance(node, Mapping) and (
        _COMBINING & node.keys() or ("properties" in node and _ALTERNATIVES & node.keys())
    ):
        return True
    return any(map(_combines, _parts(node)))


def _parts(node: Any) -> list[Any]:
    """The schemas directly within a schema."""
    if isinstance(node, list | tuple):
        return list(node)
    if not isinstance(node, Mapping):
        return []
    parts: list[Any] = []
    for key, value in node.items():
        if key not in _DATA:
            parts += value.values() if key in _NAMED and isinstance(value, Mapping) else [value]
    return parts


def _close(node: Any) -> Any:
    if isinstance(node, list | tuple):
        return [_close(value) for value in node]
    if not isinstance(node, Mapping):
        return node
    closed = {key: _close_under(key, value) for key, value in node.items()}
    if "properties" in node and "patternProperties" not in node:
        closed.setdefault("additionalProperties", False)
    return closed


def _close_under(key: str, value: Any) -> Any:
    if key in _DATA:
        return value
    if key in _NAMED and isinstance(value, Mapping):
        return {name: _close(part) for name, part in value.items()}
    return _close(value)


def _choices(choices: Sequence[str]) -> str:
    valid = isinstance(choices, Sequence) and not isinstance(choices, str | bytes)
    if not valid or not choices or not all(isinstance(choice, str) and choice for choice in choices):
        raise InvalidRequestError("choices= takes a list of texts, at least one and none of them empty.")
    return json.dumps(list(choices), ensure_ascii=False)


def _text(value: Any, kind: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequestError(f"{kind}= takes a text, not {type(value).__name__}.")
    return value


def _nested(choices: Any) -> bool:
    return isinstance(choices, list | tuple) and any(
        item is None or not isinstance(item, str) for item in choices
    )


def _column(value: Any, count: int, kind: str, listed: bool) -> Sequence[Any]:
    if value is None or not listed:
        return [value] * count
    if not isinstance(value, list | tuple) or len(value) != count:
        size = (
            f"{len(value)} of {kind}="
            if isinstance(value, list | tuple)
            else f"{kind}={type(value).__name__}"
        )
        raise InvalidRequestError(
            f"There are {count} prompts and {size}.", hint="Give one for all, or a list with one each."
        )
    return value


def _sentence(text: str) -> str:
    return text.strip().splitlines()[0].rstrip(".") if text.strip() else "it cannot be read"
