"""Output formats: a JSON Schema, a regular expression, a grammar or a list of choices that an answer must match.

An `OutputFormat` only describes; the engine's `GrammarConstraint` enforces it token by token. vLLM calls the same
description `StructuredOutputsParams`.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from adapterhub.engine.json_schema import GrammarSchema
from adapterhub.errors import GenerationError, InvalidRequestError, describe_validation

Schema = type[Any] | Mapping[str, Any]
"""A pydantic model or another type that pydantic understands, or a JSON Schema."""

OUTPUT_FORMAT_ARGUMENTS = ("schema", "regex", "grammar", "choices")
"""The arguments that describe an output format; a request has at most one of them."""

MAX_CHARACTERS = 64 * 1024
"""A longer description is refused: it would take seconds to compile."""

_MAX_CHECK_SECONDS = 2.0
_MAX_REASON = 300


@dataclass(frozen=True)
class OutputFormat:
    """The format of an answer; construct it with `OutputFormat.of`.

    Two descriptions of the same format are equal and hash alike, so an engine compiles them once.

    Attributes:
        kind: Which of the four kinds of description it is.
        text: JSON Schema, regular expression, Lark grammar, or the choices as a JSON list.
    """

    kind: Literal["schema", "regex", "grammar", "choices"]
    text: str
    _type: TypeAdapter[Any] | None = field(default=None, compare=False, repr=False)
    _checked: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.text:
            raise InvalidRequestError(f"{self.kind}= is empty, so no answer can match it.")
        if not is_unicode(self.text):
            raise InvalidRequestError(
                f"{self.kind}= is not valid Unicode text.",
                hint="Convert it to UTF-8, for example with iconv.",
            )
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
        """The output format that one of the arguments describes; None if none is given.

        Args:
            schema: A pydantic model, TypedDict, dataclass or other type that pydantic understands, or a JSON Schema.
                Objects without `additionalProperties` allow no further keys, unless the schema combines objects. What
                a grammar cannot enforce, such as `uniqueItems`, is checked by `parse`.
            regex: A regular expression that the whole answer matches, in the dialect of Rust's `regex` crate.
            grammar: A context-free grammar in llguidance's dialect of Lark,
                https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md.
            choices: The texts that the answer is chosen from.

        Raises:
            InvalidRequestError: More than one is given, or it is not of its kind or too long.
        """
        given = {"schema": schema, "regex": regex, "grammar": grammar, "choices": choices}
        kinds = [kind for kind, value in given.items() if value is not None]
        if len(kinds) > 1:
            raise InvalidRequestError(
                f"A request has at most one output format, and {' and '.join(kinds)} were given."
            )
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
        """The output formats of a batch.

        Args:
            count: Number of prompts.
            schema: As in `of`, for all prompts; or a list with a schema or None for each prompt.
            regex: The same.
            grammar: The same.
            choices: The same.

        Raises:
            InvalidRequestError: As `of`; or a list has not `count` elements.
        """
        columns = {
            "schema": _per_prompt(schema, count, "schema", isinstance(schema, list | tuple)),
            "regex": _per_prompt(regex, count, "regex", not isinstance(regex, str)),
            "grammar": _per_prompt(grammar, count, "grammar", not isinstance(grammar, str)),
            "choices": _per_prompt(choices, count, "choices", _is_nested(choices)),
        }
        rows = [{kind: column[index] for kind, column in columns.items()} for index in range(count)]
        keys = [tuple(map(id, row.values())) for row in rows]
        # A description that many prompts share is parsed once.
        formats: dict[tuple[int, ...], Self | None] = {}
        for key, row in zip(keys, rows, strict=True):
            if key not in formats:
                formats[key] = cls.of(**row)
        return [formats[key] for key in keys]

    def parse(self, text: str) -> Any:
        """Parses an answer: an instance of the pydantic type, or the JSON value; the text itself without a schema.

        Raises:
            GenerationError: The text is not valid. A grammar cannot express all that a pydantic type checks, such as
                the range of a `timedelta`, the digits of a `Decimal` or a validator written in Python, nor all
                keywords of a JSON Schema.
        """
        if self.kind != "schema":
            return text
        try:
            return self._type.validate_json(text) if self._type else self._check(json.loads(text))
        except ValidationError as error:
            reason = describe_validation(error)
            raise GenerationError(f"The answer does not pass its schema's own checks: {reason}.") from error
        except ValueError as error:
            raise GenerationError(f"The answer is not JSON: {error}.") from error

    def _check(self, value: Any) -> Any:
        if self._checked is not None:
            reason = violation(self._checked, value)
            if reason:
                raise GenerationError(
                    f"The answer does not pass its schema: {reason}.",
                    hint="No grammar can enforce all keywords. Ask again, or ask for it in the prompt.",
                )
        return value

    @classmethod
    def _of_schema(cls, schema: Schema) -> Self:
        adapter: TypeAdapter[Any] | None = None
        try:
            if not isinstance(schema, Mapping):
                adapter = type_adapter(schema)
                schema = adapter.json_schema()
            made = GrammarSchema(schema)
            checked = schema if made.checked_afterwards and adapter is None else None
            text = json.dumps(made.schema, ensure_ascii=False, allow_nan=False)
            return cls("schema", text, adapter, checked)
        except PydanticUserError as error:  # a type without a JSON Schema
            raise _no_schema(schema, error.message) from error
        except (TypeError, ValueError, RecursionError) as error:
            if isinstance(error, InvalidRequestError):
                raise
            raise InvalidRequestError(f"The schema is not a JSON Schema: {_sentence(str(error))}.") from error


def type_adapter(schema: Any) -> TypeAdapter[Any]:
    """The adapter of a type that answers are to have.

    Raises:
        InvalidRequestError: It is a value, or has one in a type's place. Pydantic would evaluate a text as Python
            code, as it does annotations.
        PydanticUserError: Pydantic does not understand the type.
    """
    if isinstance(schema, str | bytes | int | float | Sequence | Set):
        raise InvalidRequestError(
            f"A schema is a type or a JSON Schema, not a value of type {type(schema).__name__}.",
            hint="Parse the text of a JSON Schema with json.loads.",
        )
    try:
        return TypeAdapter(schema)
    except (SyntaxError, LookupError) as error:
        raise _no_schema(schema, str(error)) from error


def _no_schema(schema: Any, reason: str) -> InvalidRequestError:
    return InvalidRequestError(f"No JSON Schema can be made of {reprlib.repr(schema)}: {_sentence(reason)}.")


def violation(schema: Mapping[str, Any], value: Any) -> str | None:
    """Why a value is not valid under a schema, in bounded time; None if it is.

    Args:
        schema: A JSON Schema (2020-12).
        value: A JSON value.
    """
    # Imported late: it imports jsonschema, which few requests need.
    from adapterhub._deadline import Deadline, DeadlineExceededError
    from adapterhub.agent_tools.content_rules.json_schema import Schema as CheckedSchema
    from adapterhub.agent_tools.content_rules.json_schema import SchemaViolationError

    try:
        CheckedSchema(schema, Deadline(_MAX_CHECK_SECONDS)).check(value)
    except SchemaViolationError as error:
        return str(error)
    except DeadlineExceededError:
        return f"the check took more than {_MAX_CHECK_SECONDS:g} s"
    return None


def _choices(choices: Sequence[str]) -> str:
    valid = isinstance(choices, Sequence) and not isinstance(choices, str | bytes)
    if not valid or not choices or not all(isinstance(choice, str) and choice for choice in choices):
        raise InvalidRequestError("choices= takes a list of texts, at least one and none of them empty.")
    return json.dumps(list(choices), ensure_ascii=False)


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: without lone surrogates, which text has that was not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(value: Any, kind: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequestError(f"{kind}= takes a text, not {type(value).__name__}.")
    return value


def _is_nested(choices: Any) -> bool:
    return isinstance(choices, list | tuple) and any(
        item is None or not isinstance(item, str) for item in choices
    )


def _per_prompt(value: Any, count: int, kind: str, listed: bool) -> Sequence[Any]:
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
    line = text.strip().splitlines()[0].rstrip(".") if text.strip() else "it cannot be read"
    return line if len(line) <= _MAX_REASON else f"{line[:_MAX_REASON]}..."
