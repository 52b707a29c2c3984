"""The template of a JSON Schema, rendered from a list of properties."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar

from adapterhub.agent_tools.templates.fields import FieldValue, field_values
from adapterhub.agent_tools.templates.template import Language, RenderedTemplate

_NOT_REQUIRED = ("no", "false")
_TYPES = ("string", "integer", "number", "boolean", "array", "object", "null")


class JsonSchemaTemplate:
    """Renders the JSON Schema (2020-12) of an object, the same in every language.

    Each of `properties` has a `name`, and may have a `type`, a `description`, `"required": "no"`, and for an array the
    type of its `items`.
    """

    description: ClassVar[str] = "a JSON Schema of an object"
    required: ClassVar[tuple[str, ...]] = ("title", "properties")
    optional: ClassVar[tuple[str, ...]] = ("description",)

    def render(self, fields: Mapping[str, Any], language: Language = "en") -> RenderedTemplate:
        """Renders the schema.

        A property without a name is reported as missing, an unknown type as unknown. Of properties with one name the
        first is rendered, and the name is reported with the unknown ones.

        Raises:
            ToolError: A value cannot be rendered.
        """
        fields = field_values(fields)
        given = fields.get("properties", [])
        entries = [entry for entry in given if isinstance(entry, dict)] if isinstance(given, list) else []
        named = [entry for entry in entries if entry.get("name")]
        by_name = {entry["name"]: entry for entry in reversed(named)}
        properties = {name: by_name[name] for name in dict.fromkeys(entry["name"] for entry in named)}
        schema: dict[str, Any] = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
        schema |= {key: fields[key] for key in ("title", "description") if isinstance(fields.get(key), str)}
        schema |= {
            "type": "object",
            "properties": {name: _property(entry) for name, entry in properties.items()},
            "required": [
                name
                for name, entry in properties.items()
                if entry.get("required", "").lower() not in _NOT_REQUIRED
            ],
            "additionalProperties": False,
        }
        missing = [name for name in self.required if not fields.get(name)]
        missing += ["properties.name"] * (len(named) < len(entries) or (bool(given) and not entries))
        return RenderedTemplate(
            json.dumps(schema, indent=2, ensure_ascii=False), tuple(missing), self._unknown(fields, named)
        )

    def _unknown(self, fields: Mapping[str, FieldValue], entries: list[dict[str, str]]) -> tuple[str, ...]:
        names = [name for name in fields if name not in (*self.required, *self.optional)]
        types = [entry[key] for entry in entries for key in ("type", "items") if key in entry]
        counts = Counter(entry["name"] for entry in entries)
        return (
            *names,
            *(f"type {kind}" for kind in dict.fromkeys(types) if kind not in _TYPES),
            *(f"repeated property {name}" for name, count in counts.items() if count > 1),
        )


def _property(entry: Mapping[str, str]) -> dict[str, Any]:
    kind = entry.get("type", "string")
    schema: dict[str, Any] = {"type": kind} if kind in _TYPES else {}
    if entry.get("items") in _TYPES:
        schema["items"] = {"type": entry["items"]}
    return schema | ({"description": entry["description"]} if entry.get("description") else {})
