"""JSON Schemas as llguidance grammars, and why one cannot be made."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher, LLParserLimits

from adapterhub.engine.decoding.deep_stack import call_with_deep_stack
from adapterhub.errors import InvalidRequestError

# Most models have learned to write one blank after a comma or colon; unlimited blanks could go on for ever.
STYLE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
# What remains of `oneOf` is checked afterwards.
_OPTIONS: Any = {**STYLE, "lenient": False, "coerce_one_of": True}
# An optional property adds four items to a row, and 2,000 is the default. More items make each token slower.
PARSER_LIMITS = LLParserLimits(verbose_errors=False, max_items_in_row=8_000)
_DEFINITIONS = ("$defs", "definitions")
# llguidance negates integers of 64 bits; it recurses without end at the lowest one, which lower numbers are rounded to.
_LOWEST = -(2.0**63)
_NEGATIVE_NUMBER = re.compile(r"-\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def schema_grammar(schema: str) -> str:
    """llguidance's grammar of a JSON Schema that `OutputFormat` has made."""
    return LLMatcher.grammar_from_json_schema(schema, overrides=_OPTIONS)


def check_schema_numbers(schema: str) -> None:
    """Refuses a JSON Schema with a number that ends the process in llguidance.

    Raises:
        InvalidRequestError: A number is -2^63 or lower.
    """
    json.loads(schema, parse_int=_check_number, parse_float=_check_number)


def check_grammar_numbers(grammar: str) -> None:
    """The same for the JSON Schemas in a Lark grammar, or what looks like a number there.

    Raises:
        InvalidRequestError: A number is -2^63 or lower.
    """
    if "%json" in grammar:
        for number in _NEGATIVE_NUMBER.findall(grammar):
            _check_number(number)


def _check_number(number: str) -> None:
    if float(number) <= _LOWEST:
        raise InvalidRequestError(
            "A number of the schema is too low to be enforced: -2^63 or less.", hint="Leave this bound out."
        )


@lru_cache(maxsize=1024)
def unenforceable_part(schema: str) -> str | None:
    """The innermost part of a JSON Schema that llguidance refuses, with the reason; None if it refuses none."""
    reason = _refusal(schema)
    if not reason:
        return None
    root = json.loads(schema)
    definitions = {key: root[key] for key in _DEFINITIONS if key in root}
    for place, part in _parts(root, ""):
        refusal = _refusal(json.dumps({**definitions, **part}))
        if refusal:
            return f"{refusal}, at {place}"
    return reason


def _refusal(schema: str) -> str:
    grammar = schema_grammar(schema)
    message = call_with_deep_stack(lambda: LLMatcher.validate_grammar(grammar, limits=PARSER_LIMITS))
    return message.strip().split("\n")[0][:200].rstrip(".:")


def _parts(node: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The subschemas of properties, the innermost first, with the path of their names."""
    if isinstance(node, list):
        for part in node:
            yield from _parts(part, place)
    if not isinstance(node, dict):
        return
    for key, value in node.items():
        if key in ("properties", *_DEFINITIONS) and isinstance(value, dict):
            for name, part in value.items():
                inner = f"{place}.{name}".lstrip(".") if key == "properties" else name
                yield from _parts(part, inner)
                if isinstance(part, dict):
                    yield inner, part
        elif key not in ("enum", "const"):
            yield from _parts(value, place)
