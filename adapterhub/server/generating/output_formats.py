"""What the answer to a request has to match, as an option of `AdapterHub.generate`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from adapterhub.engine.output_format import MAX_CHARACTERS
from adapterhub.server.errors import FieldError
from adapterhub.server.protocol.output_formats import FormattedBody, ResponseFormat, StructuredOutputs
from adapterhub.tool_calling import response_schema

_GBNF_RULE = re.compile(r"^[\w-]+[ \t]*::=", re.MULTILINE)
_ANY_OBJECT = {"type": "object"}


def output_format_of(body: FormattedBody) -> dict[str, Any]:
    """The option for a request's output format; empty for any text.

    Raises:
        FieldError: Two fields ask for one, or a text is no JSON Schema, or no grammar.
    """
    structured = body.structured_outputs or StructuredOutputs.model_construct()
    asked = {
        "response_format": _response_format(body.response_format),
        "structured_outputs.json": _schema(structured.json_, "structured_outputs.json"),
        "structured_outputs.json_object": {"schema": _ANY_OBJECT} if structured.json_object else {},
        "structured_outputs.regex": _option("regex", structured.regex),
        "structured_outputs.choice": _option("choices", structured.choice),
        "structured_outputs.grammar": _grammar(structured.grammar, "structured_outputs.grammar"),
        "guided_json": _schema(body.guided_json, "guided_json"),
        "guided_regex": _option("regex", body.guided_regex),
        "guided_choice": _option("choices", body.guided_choice),
        "guided_grammar": _grammar(body.guided_grammar, "guided_grammar"),
    }
    given = {field: option for field, option in asked.items() if option}
    if len(given) > 1:
        first, second, *_ = given
        raise FieldError(f"{first} and {second} both ask for an output format; send one.", second)
    return next(iter(given.values()), {})


def _response_format(response_format: ResponseFormat | None) -> dict[str, Any]:
    described = response_format.model_dump(by_alias=True) if response_format else None
    return _option("schema", response_schema(described))


def _option(name: str, value: Any) -> dict[str, Any]:
    return {} if value is None else {name: value}


def _schema(given: str | Mapping[str, Any] | None, field: str) -> dict[str, Any]:
    if not isinstance(given, str):
        return _option("schema", given)
    if len(given) > MAX_CHARACTERS:
        raise FieldError(f"{field} has more than {MAX_CHARACTERS} characters.", field)
    try:
        read = json.loads(given)
    except (ValueError, RecursionError) as error:
        raise FieldError(f"{field} is not JSON: {error!s:.100}.", field) from error
    if not isinstance(read, dict):
        raise FieldError(f"{field} is no JSON Schema, which is an object.", field)
    return {"schema": read}


def _grammar(grammar: str | None, field: str) -> dict[str, Any]:
    """A grammar in llguidance's Lark; vLLM's users also write GBNF, as `root ::= "yes" | "no"`."""
    # The hub refuses one that is too long.
    if grammar is None or not _GBNF_RULE.search(grammar) or len(grammar) > MAX_CHARACTERS:
        return _option("grammar", grammar)
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return {"grammar": gbnf_to_lark(grammar)}
    except Exception as error:  # it raises `Exception` itself for an unknown rule
        raise FieldError(f"{field} is no GBNF: {error!s:.200}.", field) from error
