"""What an answer has to match, as an option of `AdapterHub.generate`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from adapterhub.engine.output_format import MAX_CHARACTERS
from adapterhub.errors import InvalidRequestError
from adapterhub.server.protocol.output_formats import ResponseFormat, StructuredOutputs

_GBNF_RULE = re.compile(r"^[\w-]+[ \t]*::=", re.MULTILINE)
_ANY_OBJECT = {"type": "object"}


def response_format_option(response_format: ResponseFormat | None) -> dict[str, Any]:
    """The option for OpenAI's `response_format`; empty for any text."""
    if response_format is None or response_format.type == "text":
        return {}
    if response_format.json_schema is None:
        return {"schema": _ANY_OBJECT}
    return {"schema": response_format.json_schema.schema_}


def structured_outputs_option(structured: StructuredOutputs) -> dict[str, Any]:
    """The option for vLLM's `structured_outputs`.

    Raises:
        InvalidRequestError: A text is no JSON Schema, or no grammar.
    """
    if structured.json_object:
        return {"schema": _ANY_OBJECT}
    if structured.json_ is not None:
        return {"schema": _json_schema(structured.json_)}
    if structured.grammar is not None:
        return {"grammar": _lark(structured.grammar)}
    if structured.choice is not None:
        return {"choices": structured.choice}
    return {"regex": structured.regex}


def _json_schema(given: str | Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(given, str):
        return given
    try:
        read = json.loads(given)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"structured_outputs.json is not JSON: {error!s:.100}.") from error
    if not isinstance(read, dict):
        raise InvalidRequestError("structured_outputs.json is no JSON Schema, which is an object.")
    return read


def _lark(grammar: str) -> str:
    """A grammar in llguidance's Lark; vLLM's users also write GBNF, as `root ::= "yes" | "no"`."""
    if not _GBNF_RULE.search(grammar) or len(grammar) > MAX_CHARACTERS:  # the hub refuses the latter
        return grammar
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return gbnf_to_lark(grammar)
    except Exception as error:  # it raises `Exception` itself for an unknown rule
        raise InvalidRequestError(f"The grammar is no GBNF: {error!s:.200}.") from error
