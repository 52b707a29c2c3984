"""The form in which a chat template writes tool calls, found by letting it write some.

A conversation with calls whose parts are unmistakable is rendered, and what stands around the parts is the form. It is
not found where a call is more than that: arguments that are not JSON, or no name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from adapterhub.engine.tokenizer import Tokenizer
from adapterhub.errors import InvalidRequestError
from adapterhub.langchain.call_format import CallFormat, Part
from adapterhub.requests.prompts import PromptStyle, render

_TEXT = "\u00b6text\u00b6"  # no template writes this sign: what is common to renderings cannot reach into it
_USER = {"role": "user", "content": "question"}
_OFFERED = "zq_offered"
# What is common to two renderings may end within a mark, as `<|` or `|>`; marks stay whole.
_OPEN_MARK, _MARKS_END = re.compile(r"[<\[][^<>\[\]\s]*\Z"), re.compile(r"\A[^<>\[\]\s]*[>\]]")


def find_format(style: PromptStyle, tokenizer: Tokenizer) -> CallFormat | None:
    """The form in which a chat template writes calls; None if it shows no tools or has no form of this kind.

    Args:
        style: Whose template it is.
        tokenizer: The base's, which renders templates.
    """
    if style.format != "chat":
        return None
    for text_arguments in (False, True):
        try:
            form = _Probe(style, tokenizer, text_arguments).found()
        except InvalidRequestError:  # the template refuses it
            continue
        if form:
            return form
    return None


@dataclass
class CallFormats:
    """The forms of a base's templates, each found once."""

    # Models are equal whatever they have been asked.
    _found: dict[PromptStyle, CallFormat | None] = field(default_factory=dict, compare=False)

    def of(self, style: PromptStyle, tokenizer: Tokenizer) -> CallFormat | None:
        """As `find_format`."""
        if style not in self._found:
            self._found[style] = find_format(style, tokenizer)
        return self._found[style]


@dataclass(frozen=True)
class _Call:
    """A call whose parts occur nowhere else in a rendered conversation."""

    name: str
    arguments: Mapping[str, str]
    id: str

    def turn(self, text_arguments: bool) -> dict[str, Any]:
        arguments = json.dumps(self.arguments) if text_arguments else self.arguments
        return {
            "type": "function",
            "id": self.id,
            "function": {"name": self.name, "arguments": arguments},
        }

    def places(self, text: str) -> list[tuple[int, int, Part]]:
        """Where its parts begin and end, in their order; none if a name or arguments are not there once."""
        found = [(*place, part) for part, place in self._spans(text)]
        return sorted(found) if {"name", "arguments"} <= {part for *_, part in found} else []

    def _spans(self, text: str) -> list[tuple[Part, tuple[int, int]]]:
        spans: list[tuple[Part, tuple[int, int]]] = []
        named: tuple[tuple[Part, str], ...] = (("name", self.name), ("id", self.id))
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


def _object_end(text: str, start: int, wanted: Mapping[str, str]) -> int | None:
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except ValueError:
        return None
    return end if value == wanted and "\n" not in text[start:end] else None


@dataclass(frozen=True)
class _Probe:
    """A template that is asked to write calls."""

    style: PromptStyle
    tokenizer: Tokenizer
    text_arguments: bool

    def found(self) -> CallFormat | None:
        """The form, if the template writes calls in one."""
        text, one = self._written(_TEXT), self._written("", *_CALLS[:1])
        start = _OPEN_MARK.sub("", _common(text, one))
        end = _MARKS_END.sub("", _common(text[len(start) :][::-1], one[len(start) :][::-1])[::-1])
        single = _taken_apart(one[len(start) : len(one) - len(end)], _CALLS[:1])
        if not single or _OFFERED not in start:
            return None
        parts, (head, *gaps, tail) = single
        form = CallFormat(head, parts, tuple(gaps), tail, text_arguments=self.text_arguments)
        if not form.readable:
            return None
        return replace(form, join=self._join(start, end, form), lead=self._lead(form))

    def _join(self, start: str, end: str, form: CallFormat) -> str | None:
        """What stands between two calls, unless the template refuses several or numbers them."""
        try:
            text = self._written("", *_CALLS)
        except InvalidRequestError:
            return None
        if not (text.startswith(start) and text.endswith(end)):
            return None
        apart = _taken_apart(text[len(start) : len(text) - len(end)], _CALLS)
        if not apart or apart[0] != form.parts * len(_CALLS):
            return None
        around, join = apart[1], apart[1][len(form.parts)]
        alike = [form.head, *form.gaps, *((join, *form.gaps) * (len(_CALLS) - 1)), form.tail]
        return join if around == alike else None

    def _lead(self, form: CallFormat) -> str:
        try:
            after = self._written(_TEXT, *_CALLS[:1]).partition(_TEXT)[2]
        except InvalidRequestError:
            return ""
        lead = after.partition(form.head)[0]
        return lead if lead.isspace() else ""

    def _written(self, content: str, *calls: _Call) -> str:
        answer: dict[str, Any] = {"role": "assistant", "content": content}
        if calls:
            answer["tool_calls"] = [call.turn(self.text_arguments) for call in calls]
        parameters = {"type": "object", "properties": {}, "required": []}
        function = {"name": _OFFERED, "description": "None.", "parameters": parameters}
        tools = [{"type": "function", "function": function}]
        return render([_USER, answer], self.style, self.tokenizer, tools=tools, answer_follows=False)


def _common(one: str, other: str) -> str:
    """What two texts begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return one[: next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))]


def _taken_apart(text: str, calls: Sequence[_Call]) -> tuple[tuple[Part, ...], list[str]] | None:
    """The parts of calls in a text, and the texts before, between and after them; None if a call is not there."""
    places = [call.places(text) for call in calls]
    if not all(places):
        return None
    flat = [place for call in places for place in call]
    starts, ends = [0, *(end for _, end, _ in flat)], [*(start for start, *_ in flat), len(text)]
    return tuple(part for *_, part in flat), [text[a:b] for a, b in zip(starts, ends, strict=True)]
