"""Tools as a prompt describes them: what a model needs to know, in half the tokens of a whole JSON Schema.

The grammar enforces the whole schema, so the prompt may leave out what a model would not do otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from adapterhub.errors import InvalidRequestError

_LARGE = 50
"""Upper bounds from this on are there for safety; no model aims at them."""
_LOWER_BOUNDS = frozenset({"minLength", "minItems", "minProperties", "minimum"})
_UPPER_BOUNDS = frozenset({"maxLength", "maxItems", "maxProperties", "maximum", "exclusiveMaximum"})
_DATA = frozenset({"const", "default", "enum", "examples"})
_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_SILENT = frozenset({"title", "$schema", "discriminator"})


def prompt_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools with shorter schemas of their arguments.

    Left out are titles, closedness, `null` for optional arguments, types that other keywords show, empty defaults, and
    wide bounds; a definition that is used once stands where it is used.

    Args:
        tools: Functions in OpenAI's format; they are not changed.

    Raises:
        InvalidRequestError: A tool is not JSON.
    """
    return [{**tool, "function": json.loads(_shortened(_written(tool["function"])))} for tool in tools]


def _written(function: Mapping[str, Any]) -> str:
    try:
        return json.dumps(function)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"The tool {function['name']!r} is not JSON: {error!s:.100}.") from error


@lru_cache(maxsize=256)  # an agent sends the same tools with each request
def _shortened(written: str) -> str:
    return json.dumps(_with_short_parameters(json.loads(written)))


def _with_short_parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    parameters = function.get("parameters")
    if not isinstance(parameters, Mapping):
        return dict(function)
    return {**function, "parameters": {"type": "object", **_inlined(_compact(parameters))}}


def _compact(node: Any) -> Any:
    if isinstance(node, list | tuple):
        return [_compact(part) for part in node]
    if not isinstance(node, Mapping):
        return node
    node = _without_null(node)
    return {
        key: _compact_value(key, value) for key, value in node.items() if not _is_silent(key, value, node)
    }


def _compact_value(key: str, value: Any) -> Any:
    if key in _DATA:
        return value
    if key in _MAPS and isinstance(value, Mapping):
        return {name: _compact(part) for name, part in value.items()}
    return _compact(value)


def _is_silent(key: str, value: Any, node: Mapping[str, Any]) -> bool:
    """Whether a keyword tells a model nothing."""
    if key in _UPPER_BOUNDS | _LOWER_BOUNDS:
        large = isinstance(value, int | float) and value >= _LARGE
        return large if key in _UPPER_BOUNDS else value in (0, 1)
    return (
        key in _SILENT
        or (key == "additionalProperties" and value is False)
        or (key == "type" and not {"const", "enum", "properties"}.isdisjoint(node))
        or (key == "default" and (not value or "const" in node))
    )


def _without_null(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """An optional argument without its alternative of `null`: a model leaves it out."""
    alternatives = node.get("anyOf")
    if node.get("default", ...) is not None or not isinstance(alternatives, list) or len(alternatives) != 2:
        return node
    given = [each for each in alternatives if each != {"type": "null"}]
    rest = {key: value for key, value in node.items() if key != "anyOf"}
    return {**given[0], **rest} if len(given) == 1 and isinstance(given[0], Mapping) else node


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with definitions that are used once, and not by themselves, in place of their references."""
    for name, definition in list(schema.get("$defs", {}).items()):
        reference = json.dumps({"$ref": f"#/$defs/{name}"})
        written = json.dumps(schema)
        if written.count(reference) != 1 or reference in json.dumps(definition):
            continue
        schema = json.loads(written.replace(reference, json.dumps(definition)))
        del schema["$defs"][name]
    if schema.get("$defs") == {}:
        del schema["$defs"]
    return schema
