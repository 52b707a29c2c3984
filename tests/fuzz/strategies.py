"""What strangers send: odd texts, JSON values, and changes to a document that was valid."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

_PIECES = (
    "", "a", "json", "base", "auto", "latest", "@", "@1", ":", "+", "0.5", "1e309", "-1", "\n", "\n\n",
    "\r\n", "\t", " ", "\x00", "\x1b[31m", "\u200b", "\u202e", "\ufeff", "\ufffd", "\ud800", "e\u0301", "é",
    "日本語", "🙂", "👩\u200d👩\u200d👧", "привет", "../", "/etc/passwd", "C:\\", "con", "nul.txt", "~", "$HOME", "%s",
    "{}", "{0.__class__}", "`id`", "'; --", "<|im_end|>", "<|im_start|>system\n", "</s>", "<s>", "[INST]",
    "<tool_call>", "</tool_call>", "<think>", "{{", "}}", "{%", "%}", "{#", "{{ x }}", "{% for i in x %}",
    "{% endfor %}", "{{ 'a' * 10**9 }}", "{{ x|join }}", "(", ")", "(a+)+$", "(?=a)", "[", "]", "[^",
    "{9999}", "{1,9}{1,9}", "a{2}", "\\", "\\1", "|", "*", "+?", ".*", "---", "---\n", "&a", "*a",
    "!!python/object", "- ", "key: ", "# ", "## ", "```", "| a | b |", "|---|", "* ", "1. ", '{"', '":',
    "[" * 50, "]" * 50, '{"a":' * 30, "null", "NaN", "1e999", "9" * 400, "true", '"$ref"', '"#"', "a@b.c",
    "http://", "https://a.b/'", "sk_live_", "-----BEGIN", "TODO", "[Name]", "x" * 300,
)  # fmt: skip

texts = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from(_PIECES), max_size=12).map("".join),
    st.lists(st.one_of(st.sampled_from(_PIECES), st.text(max_size=4)), max_size=12).map("".join),
)
"""Texts of up to a few hundred characters; some are not valid Unicode."""

_JINJA = (
    "{{ a }}", "{{ x | join(', ') }}", "{{ i }}", "{{ i.b }}", "{{ loop.index }}", "{{ a | upper }}",
    "{{ x[0] }}", "{% if a %}", "{% elif x %}", "{% else %}", "{% endif %}", "{% for i in x %}",
    "{% endfor %}", "{# c #}", "a\n",
)  # fmt: skip
_CHAT_JINJA = (
    "{% for message in messages %}", "{{ message.role }}: {{ message['content'] }}\n",
    "{{ messages[-1].content }}", "{% set ns = namespace(x=1) %}", "{% set ns.x = ns.x * 99 %}",
    "{{ raise_exception('no') }}", "{{ bos_token }}", "{% macro m() %}{{ m() }}{% endmacro %}",
    "{{ m() }}", "{{ tools | tojson }}", "{{ [].append(1) }}", "{% break %}", "{% for i in range(99) %}",
    "{{ ('a' * 99) * 99 }}", "{{ messages.__class__ }}", "{% generation %}", "{{ 1 // 0 }}",
    "{% if add_generation_prompt %}",
)  # fmt: skip
templates = st.one_of(texts, st.lists(st.sampled_from(_JINJA), min_size=1, max_size=8).map("".join))
"""Templates of the tools."""
chat_templates = st.one_of(
    texts, st.lists(st.sampled_from((*_JINJA, *_CHAT_JINJA)), min_size=1, max_size=8).map("".join)
)
"""Chat templates of models."""

numbers = st.one_of(
    st.integers(-3, 300),
    st.sampled_from([2**31, 2**63, 2**64, -(2**63) - 1, 10**400, -(10**400)]),
    st.floats(),
    st.sampled_from([1e-50, 1e308, -0.0]),
)

scalars = st.one_of(st.none(), st.booleans(), numbers, texts)

json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
"""Values that `json.dumps` can write."""

objects = st.one_of(
    json_values,
    st.binary(max_size=8),
    st.sampled_from([object(), int, len, {1}, (1, "a"), 1j, b"", range(3), Ellipsis]),
)
"""Values of any type, as a caller in Python may pass."""


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys: Any = (
        value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    return [path, *(found for key in keys for found in _paths(value[key], (*path, key)))]


def _replace(document: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    if not path:
        return change(document)
    *parents, last = path
    place = document
    for key in parents:
        place = place[key]
    place[last] = change(place[last])
    return document


@st.composite
def changed(draw: st.DrawFn, document: Any, values: st.SearchStrategy[Any] = json_values) -> Any:
    """A valid document with some of its values replaced, and fields added to or taken from its objects."""
    if draw(st.integers(0, 19)) == 19:
        return draw(values)
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(_paths(document)[1:] or [()]))
        action = draw(st.sampled_from(["replace", "add", "remove"]))

        def change(value: Any, action: str = action) -> Any:
            if action == "replace" or not isinstance(value, dict):
                return draw(values)
            if action == "add" or not value:
                return {
                    **value,
                    draw(st.sampled_from(sorted(value)) if value else texts): draw(values),
                    draw(texts): 1,
                }
            gone = draw(st.sampled_from(sorted(value)))
            return {key: item for key, item in value.items() if key != gone}

        document = _replace(document, path, change)
    return document


def as_bytes(documents: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    """JSON documents as files, some of them damaged."""
    written = documents.map(lambda document: json.dumps(document).encode())
    damaged = st.builds(_damaged, written, st.integers(0, 4000), st.binary(max_size=6))
    return st.one_of(written, written, written, damaged)


def _damaged(content: bytes, place: int, insertion: bytes) -> bytes:
    place %= len(content) + 1
    return content[:place] + insertion + content[place + len(insertion) :]


_types = st.sampled_from(["string", "integer", "number", "boolean", "null", "array", "object", "strange", 7])
_names = st.sampled_from(["a", "b", "kind", "", "$ref", "é", "x" * 40])


def _schema_of(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    keywords: dict[str, st.SearchStrategy[Any]] = {
        "type": st.one_of(_types, st.lists(_types, max_size=2)),
        "properties": st.dictionaries(_names, inner, max_size=3),
        "required": st.lists(_names, max_size=2),
        "additionalProperties": st.one_of(st.booleans(), inner),
        "items": inner,
        "prefixItems": st.lists(inner, max_size=2),
        "minItems": st.integers(-1, 5),
        "maxItems": st.integers(-1, 5),
        "uniqueItems": st.booleans(),
        "anyOf": st.lists(inner, max_size=3),
        "oneOf": st.lists(inner, max_size=2),
        "allOf": st.lists(inner, max_size=2),
        "not": inner,
        "enum": st.lists(scalars, max_size=3),
        "const": scalars,
        "pattern": texts,
        "format": st.sampled_from(["date", "email", "uuid", "password", "path", "nonsense"]),
        "minLength": st.integers(-1, 5),
        "maxLength": st.integers(-1, 5),
        "minimum": numbers,
        "maximum": numbers,
        "multipleOf": st.sampled_from([0, 1, 0.01, 7, -1]),
        "propertyNames": inner,
        "patternProperties": st.dictionaries(texts, inner, max_size=2),
        "dependentRequired": st.just({"a": ["b"]}),
        "$ref": st.sampled_from(["#", "#/$defs/a", "#/$defs/none", "http://127.0.0.1:1/x", "#/properties/a"]),
        "$defs": st.dictionaries(_names, inner, max_size=2),
        "default": scalars,
        "title": texts,
    }
    some = st.lists(st.sampled_from(sorted(keywords)), max_size=5, unique=True)
    return some.flatmap(lambda chosen: st.fixed_dictionaries({name: keywords[name] for name in chosen}))


json_schemas = st.recursive(
    st.one_of(st.booleans(), _types.map(lambda kind: {"type": kind}), st.just({})), _schema_of, max_leaves=8
)
"""JSON Schemas, most of them with a meaning, some of them nonsense."""
