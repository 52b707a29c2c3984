"""JSON Schemas as grammars can enforce them.

The keywords of a schema are of three kinds: those that the grammar enforces, those that are checked once the answer is
there, and annotations, which say nothing about validity and would only make the grammar larger.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

ENFORCED = frozenset(
    [
        "$schema",
        "$defs",
        "definitions",
        "$anchor",
        "$id",
        "$ref",
        "type",
        "enum",
        "const",
        "anyOf",
        "oneOf",
        "allOf",
        "items",
        "additionalItems",
        "prefixItems",
        "minItems",
        "maxItems",
        "properties",
        "additionalProperties",
        "patternProperties",
        "required",
        "minProperties",
        "maxProperties",
        "minLength",
        "maxLength",
        "pattern",
        "format",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
    ]
)
"""Keywords that llguidance enforces; `_is_enforced` has the exceptions."""
CHECKED_AFTERWARDS = frozenset(
    [
        "not",
        "if",
        "then",
        "else",
        "contains",
        "minContains",
        "maxContains",
        "uniqueItems",
        "propertyNames",
        "dependentRequired",
        "dependentSchemas",
        "dependencies",
        "unevaluatedItems",
        "unevaluatedProperties",
        "$dynamicRef",
        "$recursiveRef",
    ]
)
"""Keywords that no grammar enforces, but for `propertyNames` with a pattern or an enumeration."""
ENFORCED_FORMATS = frozenset(
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"]
)
"""Other formats are annotations, as JSON Schema has it."""

_LOOK_AROUND = re.compile(r"\(\?<?[=!]|\\[1-9]")  # and back-references
_COMBINING = frozenset({"allOf", "if", "not", "dependentSchemas", "unevaluatedProperties"})
_ALTERNATIVES = frozenset({"anyOf", "oneOf", "$ref"})
_KINDS = frozenset({"type", "enum", "const"})
_DATA = frozenset({"const", "default", "enum", "example", "examples"})  # their values are no schemas
_PARTS = frozenset({"properties", "patternProperties"})
_MAPS = _PARTS | {"$defs", "definitions"}  # name -> schema


@dataclass
class GrammarSchema:
    """A schema as the grammar enforces it.

    Objects without `additionalProperties` are closed, since a model could add keys for ever, unless the schema combines
    objects: closing one part would forbid the keys of the others. What has `properties` is an object. The property by
    which a union is discriminated is required even where it has a default, since no value without it can be validated.

    Args:
        given: The caller's schema; it is not changed.

    Attributes:
        schema: What the grammar enforces.
        checked_afterwards: What it leaves out, such as `"uniqueItems of tags"`.
    """

    given: Mapping[str, Any]
    schema: Any = field(init=False)
    checked_afterwards: list[str] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._closes = not _combines(self.given)
        self._discriminators = dict(_discriminators(self.given, self.given))
        self.schema = self._convert(self.given, "")

    def _convert(self, node: Any, place: str) -> Any:
        if isinstance(node, list | tuple):
            return [self._convert(part, place) for part in node]
        if not isinstance(node, Mapping):
            return node
        ruled = _with_ruled_names(node, self.given)
        converted = {
            key: self._convert_value(key, value, place)
            for key, value in ruled.items()
            if self._keeps(key, ruled, place)
        }
        if self._closes and "properties" in ruled and "patternProperties" not in ruled:
            converted.setdefault("additionalProperties", False)
            if not _KINDS & converted.keys():
                # Else any value that is no object would be valid, and nobody means that.
                converted["type"] = "object"
        discriminator = self._discriminators.get(id(node))
        if discriminator in converted.get("properties", {}):
            converted["required"] = list(dict.fromkeys([*converted.get("required", ()), discriminator]))
        return converted

    def _convert_value(self, key: str, value: Any, place: str) -> Any:
        if key in _DATA:
            return value
        if key in _MAPS and isinstance(value, Mapping):
            return {
                name: self._convert(part, f"{place}.{name}".lstrip(".") if key in _PARTS else place)
                for name, part in value.items()
            }
        return self._convert(value, place)

    def _keeps(self, key: str, node: Mapping[str, Any], place: str) -> bool:
        if key in ENFORCED and (key != "format" or node[key] in ENFORCED_FORMATS):
            enforced = _is_enforced(key, node, closes=self._closes)
            keeps = enforced or key == "oneOf"  # as `anyOf`
        else:
            enforced, keeps = key not in CHECKED_AFTERWARDS, False
        if not enforced:
            self.checked_afterwards.append(f"{key} of {place}" if place else key)
        return keeps


def _is_enforced(key: str, node: Mapping[str, Any], *, closes: bool) -> bool:
    """Whether the grammar enforces a keyword of `ENFORCED` here; `closes` objects that do not say if they are open."""
    value = node[key]
    if key == "pattern":
        return not (isinstance(value, str) and _LOOK_AROUND.search(value))
    if key in ("minProperties", "maxProperties"):
        properties, is_open = node.get("properties", {}), node.get("additionalProperties", not closes)
        if not isinstance(properties, Mapping) or properties.keys() <= set(node.get("required", ())):
            return True  # none is optional
        return value == 1 and is_open is False and "patternProperties" not in node
    return key != "oneOf" or "discriminator" in node or len(value) < 2


def _with_ruled_names(node: Mapping[str, Any], root: Mapping[str, Any]) -> Mapping[str, Any]:
    """`propertyNames` with one pattern or an enumeration, written with keywords that a grammar enforces."""
    names = _resolve(node.get("propertyNames"), root)
    if not isinstance(names, Mapping) or "patternProperties" in node:
        return node
    rules = {key: value for key, value in names.items() if key in ENFORCED - {"type"}}
    value = node.get("additionalProperties", True)
    rest = {key: part for key, part in node.items() if key != "propertyNames"} | {
        "additionalProperties": False
    }
    if rules.keys() == {"enum"}:
        named = node.get("properties", {})
        return rest | {"properties": {name: named.get(name, value) for name in rules["enum"]}}
    if (
        rules.keys() == {"pattern"}
        and "properties" not in node
        and _is_enforced("pattern", rules, closes=False)
    ):
        return rest | {"patternProperties": {rules["pattern"]: value}}
    return node


def _discriminators(node: Any, root: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """The identity of each alternative of a discriminated union, with the property that tells it apart."""
    if isinstance(node, Mapping) and isinstance(node.get("discriminator"), Mapping):
        for alternative in [*node.get("oneOf", ()), *node.get("anyOf", ())]:
            yield id(_resolve(alternative, root)), node["discriminator"].get("propertyName")
    for part in _subschemas(node):
        yield from _discriminators(part, root)


def _resolve(node: Any, root: Mapping[str, Any]) -> Any:
    """A schema, or the one that its `$ref` names within the root."""
    reference = node.get("$ref") if isinstance(node, Mapping) else None
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return node
    found: Any = root
    for step in reference[2:].split("/"):
        found = found.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
    return found


def _combines(node: Any) -> bool:
    if isinstance(node, Mapping) and (
        _COMBINING & node.keys() or ("properties" in node and _ALTERNATIVES & node.keys())
    ):
        return True
    return any(map(_combines, _subschemas(node)))


def _subschemas(node: Any) -> list[Any]:
    """The direct subschemas of a schema."""
    if isinstance(node, list | tuple):
        return list(node)
    if not isinstance(node, Mapping):
        return []
    subschemas: list[Any] = []
    for key, value in node.items():
        if key not in _DATA:
            subschemas += value.values() if key in _MAPS and isinstance(value, Mapping) else [value]
    return subschemas
