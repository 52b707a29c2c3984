"""Detection of a chat template's tool call format, by rendering calls with it.

A conversation with calls whose fields are unmistakable is rendered; the texts around the fields are the format. A
template whose calls are more than that (arguments that are not JSON, or no name) has no format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from adapterhub.engine.tokenizer import Tokenizer
from adapterhub.errors import InvalidRequestError
from adapterhub.requests.prompts import PromptStyle, render
from adapterhub.tool_calling.call_format import CallField, ToolCallFormat

_TEXT = "\u00b6text\u00b6"  # no template contains this character, so that no common prefix reaches into it
_USER = {"role": "user", "content": "question"}
_TOOL_NAME = "zq_offered"
# The common prefix of two renderings may end within a special token, as `<|`; special tokens stay whole.
_OPEN_TOKEN, _TOKEN_END = re.compile(r"[<\[][^<>\[\]\s]*\Z"), re.compile(r"\A[^<>\[\]\s]*[>\]]")


def detect_format(style: PromptStyle, tokenizer: Tokenizer) -> ToolCallFormat | None:
    """Detects the tool call format of a chat template; None if it renders no tools or has no such format.

    Args:
        style: The prompt style with the template.
        tokenizer: The base's, which renders templates.
    """
    if style.format != "chat":
        return None
    for arguments_as_string in (False, True):
        try:
            call_format = _Probe(style, tokenizer, arguments_as_string).detect()
        except InvalidRequestError:  # the template rejects the conversation
            continue
        if call_format:
            return call_format
    return None


@dataclass
class ToolCallFormats:
    """The formats of a base's templates, each detected once."""

    # Not compared: two equal models stay equal after a call.
    _formats: dict[PromptStyle, ToolCallFormat | None] = field(default_factory=dict, compare=False)

    def of(self, style: PromptStyle, tokenizer: Tokenizer) -> ToolCallFormat | None:
        """As `detect_format`."""
        if style not in self._formats:
            self._formats[style] = detect_format(style, tokenizer)
        return self._formats[style]


@dataclass(frozen=True)
class _Call:
    """A call whose fields occur nowhere else in a rendered conversation."""

    name: str
    arguments: Mapping[str, str]
    id: str

    def to_dict(self, arguments_as_string: bool) -> dict[str, Any]:
        arguments = json.dumps(self.arguments) if arguments_as_string else self.arguments
        return {
            "type": "function",
            "id": self.id,
            "function": {"name": self.name, "arguments": arguments},
        }

    def positions(self, text: str) -> list[tuple[int, int, CallField]]:
        """Start, end and kind of its fields, in order; empty if name or arguments do not occur exactly once."""
        positions = [(*span, kind) for kind, span in self._spans(text)]
        complete = {"name", "arguments"} <= {kind for *_, kind in positions}
        return sorted(positions) if complete else []

    def _spans(self, text: str) -> list[tuple[CallField, tuple[int, int]]]:
        spans: list[tuple[CallField, tuple[int, int]]] = []
        named: tuple[tuple[CallField, str], ...] = (("name", self.name), ("id", self.id))
        for part, value in named:
            spans += [(part, match.span()) for match in re.finditer(value, text)]
        for match in re.finditer(r"\{", text):
            end = _object_end(text, match.start(), self.arguments)
            spans += [("arguments", (match.start(), end))] if end else []
        return spans if len({part for part, _ in spans}) == len(spans) else []


_CALLS = (
    _Call("zq_first", {"zq_key": "zq_1"}, "zQ1aZq1bQ"),
    _Call("zq_other", {"zq_word": "zq_2"}, "zQ2cZq2dQ"),
    _Call("zq_third", {"zq_last": "zq_3"}, "zQ3eZq3fQ"),
)


def _object_end(text: str, start: int, expected: Mapping[str, str]) -> int | None:
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except ValueError:
        return None
    return end if value == expected and "\n" not in text[start:end] else None


@dataclass(frozen=True)
class _Probe:
    """Renders calls with a template and compares the results."""

    style: PromptStyle
    tokenizer: Tokenizer
    arguments_as_string: bool

    def detect(self) -> ToolCallFormat | None:
        """Returns the format; None if the calls have none."""
        text, one = self._render(_TEXT), self._render("", *_CALLS[:1])
        start = _OPEN_TOKEN.sub("", _common_prefix(text, one))
        end = _TOKEN_END.sub("", _common_prefix(text[len(start) :][::-1], one[len(start) :][::-1])[::-1])
        single = _split_at_fields(one[len(start) : len(one) - len(end)], _CALLS[:1])
        if not single or _TOOL_NAME not in start:
            return None
        fields, (prefix, *separators, suffix) = single
        call_format = ToolCallFormat(
            prefix, fields, tuple(separators), suffix, arguments_as_string=self.arguments_as_string
        )
        if not call_format.is_parsable:
            return None
        return replace(
            call_format,
            call_separator=self._call_separator(start, end, call_format),
            content_separator=self._content_separator(call_format),
        )

    def _call_separator(self, start: str, end: str, call_format: ToolCallFormat) -> str | None:
        """The text between two calls; None if the template rejects several calls or numbers them."""
        try:
            text = self._render("", *_CALLS)
        except InvalidRequestError:
            return None
        if not (text.startswith(start) and text.endswith(end)):
            return None
        split = _split_at_fields(text[len(start) : len(text) - len(end)], _CALLS)
        if not split or split[0] != call_format.fields * len(_CALLS):
            return None
        texts, separator = split[1], split[1][len(call_format.fields)]
        further_calls = (separator, *call_format.separators) * (len(_CALLS) - 1)
        regular = [call_format.prefix, *call_format.separators, *further_calls, call_format.suffix]
        return separator if texts == regular else None

    def _content_separator(self, call_format: ToolCallFormat) -> str:
        try:
            after = self._render(_TEXT, *_CALLS[:1]).partition(_TEXT)[2]
        except InvalidRequestError:
            return ""
        separator = after.partition(call_format.prefix)[0]
        return separator if separator.isspace() else ""

    def _render(self, content: str, *calls: _Call) -> str:
        answer: dict[str, Any] = {"role": "assistant", "content": content}
        if calls:
            answer["tool_calls"] = [call.to_dict(self.arguments_as_string) for call in calls]
        parameters = {"type": "object", "properties": {}, "required": []}
        function = {"name": _TOOL_NAME, "description": "None.", "parameters": parameters}
        tools = [{"type": "function", "function": function}]
        return render([_USER, answer], self.style, self.tokenizer, tools=tools, add_generation_prompt=False)


def _common_prefix(one: str, other: str) -> str:
    """The common prefix of two texts."""
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))]


def _split_at_fields(text: str, calls: Sequence[_Call]) -> tuple[tuple[CallField, ...], list[str]] | None:
    """Splits a text at the fields of calls: the fields, and the texts around them; None if a call is not found."""
    positions = [call.positions(text) for call in calls]
    if not all(positions):
        return None
    flat = [position for call in positions for position in call]
    starts, ends = [0, *(end for _, end, _ in flat)], [*(start for start, *_ in flat), len(text)]
    return tuple(part for *_, part in flat), [text[a:b] for a, b in zip(starts, ends, strict=True)]
