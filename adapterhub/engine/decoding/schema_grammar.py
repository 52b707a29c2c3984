"""JSON Schemas as llguidance grammars, and why one cannot be made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher, LLParserLimits

from adapterhub.engine.decoding.deep_stack import call_with_deep_stack

# Most models have learned to write one blank after a comma or colon; unlimited blanks could go on for ever.
STYLE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
# What remains of `oneOf` is checked afterwards.
_OPTIONS: Any = {**STYLE, "lenient": False, "coerce_one_of": True}
# An optional property adds four items to a row, and 2,000 is the default. More items make each token slower.
PARSER_LIMITS = LLParserLimits(verbose_errors=False, max_items_in_row=8_000)
_DEFINITIONS = ("$defs", "definitions")


def schema_grammar(schema: str) -> str:
    """llguidance's grammar of a JSON Schema that `OutputFormat` has made."""
    return LLMatcher.grammar_from_json_schema(schema, overrides=_OPTIONS)


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
