"""What a prompt format writes between the contents of messages, found by rendering conversations of marked contents.

A prompt is contents with texts between them. A text between two contents depends on what they are, on tools, on
`think`, and on whether the second is the last of its kind; a format for which that is not enough is not expressible.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from adapterhub.errors import ExportError
from adapterhub.export.ollama.conversations import Conversation
from adapterhub.export.ollama.source import PromptSource

TOOLS_MARK = "\uf8ff"
"""Stands in a text where the list of tools is; a private character, which no template writes."""
_SPECS = ("u", "uau", "uauau", "ua", "uaua")
_SYSTEM_SPECS = ("su", "suau", "sua")
_UNUSUAL_SPECS = ("s", "usu", "uasu", "au")
_CALL_SPECS = ("uct", "uctt", "uctau", "uCtau", "ucu", "uctct", "uctcta", "sucttau", "ukt", "uru")


class Key(NamedTuple):
    """Where a text stands: after `previous` and before `kind`.

    Besides the roles, kinds are `start`, `end`, `content` (of an answer with calls), `name` and `arguments` of a call,
    and `reasoning`.
    """

    previous: str
    kind: str
    last: bool = False
    tools: bool = False
    think: bool | None = None


class JsonStyle(NamedTuple):
    """How a template writes JSON: the arguments of `json.dumps`."""

    item: str
    key: str
    indent: int | None

    def dump(self, value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=self.indent, separators=(self.item, self.key))


STYLES = (
    JsonStyle(", ", ": ", None),
    JsonStyle(",", ":", None),
    JsonStyle(",", ": ", 4),
    JsonStyle(",", ": ", 2),
)
_RAW = None


@dataclass(frozen=True)
class ToolList:
    """How the tools are listed.

    Attributes:
        style: Their JSON.
        is_function: Whether only a tool's `function` is written.
        separator: The text between two tools.
    """

    style: JsonStyle
    is_function: bool
    separator: str


@dataclass
class ProbedFormat:
    """What was found.

    Attributes:
        texts: The text at each place.
        styles: The kinds of contents that are written as JSON, and how.
        tool_list: How tools are listed; None if the format has no tools.
        hides_content: Whether an answer's content is left out where it has calls.
        system_place: Where the system message stands: `"first"`, or in the `"last user"` message, or in the
            `"last message"` if that is the user's.
    """

    texts: dict[Key, str] = field(default_factory=dict)
    styles: dict[str, JsonStyle] = field(default_factory=dict)
    tool_list: ToolList | None = None
    hides_content: bool = False
    system_place: str = "first"

    def at(self, previous: str | None = None, kind: str | None = None) -> dict[Key, str]:
        """The texts after or before a kind."""
        return {
            key: text
            for key, text in self.texts.items()
            if previous in (None, key.previous) and kind in (None, key.kind)
        }


def not_expressible(reason: str, hint: str = "") -> ExportError:
    return ExportError(
        f"The chat template cannot be written as an Ollama template: {reason}.",
        hint=f"{hint}--no-modelfile leaves Modelfiles out, --no-modelfile-tools their tools alone (in Python: "
        "modelfiles=False, modelfile_tools=False).",
    )


def probe(source: PromptSource, *, tools: bool = True) -> ProbedFormat:
    """Renders conversations, and collects the texts between their contents.

    Args:
        source: The prompt format.
        tools: Whether to look for tools, calls and their results too.

    Raises:
        ExportError: The format is not expressible.
    """
    if "strftime_now" in (source.style.template or ""):
        raise not_expressible(
            "it writes the date of each request",
            "Set a chat template with a fixed date (prompt.chat_template). ",
        )
    found = ProbedFormat(system_place=_system_place(source))
    thinks = (None, True, False) if source.has_thinking_switch else (None,)
    for think in thinks:
        for spec in _SPECS:
            _add(found, source, spec, think=think, required=True)
        for spec in _SYSTEM_SPECS:
            _add(found, source, spec, think=think)
        for spec in _UNUSUAL_SPECS:
            if "s" not in spec or (found.at("start", "system") and found.system_place == "first"):
                _add(found, source, spec, think=think, may_conflict=True)
        if tools and source.has_tools:
            for spec in (*_SPECS, *_SYSTEM_SPECS, *_CALL_SPECS):
                _add(found, source, spec, tools=True, think=think)
    return found


def _system_place(source: PromptSource) -> str:
    text, begun = (
        source.try_render(_Probed(spec, False, None, 1).conversation) or "" for spec in ("suau", "sua")
    )
    if text.find(_content(0)) <= text.find(_content(1)):
        return "first"
    return "last user" if _content(0) in begun else "last message"


def _add(
    found: ProbedFormat,
    source: PromptSource,
    spec: str,
    *,
    tools: bool = False,
    think: bool | None = None,
    required: bool = False,
    may_conflict: bool = False,
) -> None:
    """Adds the texts of one conversation; one that the format refuses has none."""
    for calls in (2, 1):  # some formats know one call in an answer only
        probed = _Probed(spec, tools, think, calls, found.system_place)
        text = source.try_render(probed.conversation)
        if text is not None:
            break
    if text is None:
        if required:
            raise not_expressible("it refuses a plain conversation")
        return
    texts = probed.cut(text, found)
    if texts is None:
        if may_conflict or (not required and "s" in spec):
            return
        raise not_expressible(_missing(spec))
    known = found.texts
    if conflict := next((key for key in texts if known.get(key, texts[key]) != texts[key]), None):
        if may_conflict:
            return
        raise _undetermined(conflict)
    known.update(texts)


def _undetermined(key: Key) -> ExportError:
    return not_expressible(
        f"what stands between {key.previous} and {key.kind} depends on more than these two"
    )


def _missing(spec: str) -> str:
    called = set("ckC") & set(spec)
    return (
        "it writes calls of tools in a form that is not name and JSON arguments"
        if called
        else "it changes, repeats or reorders the contents of messages"
    )


class _Mark(NamedTuple):
    """A content that the format has to write: its kind, and its value."""

    kind: str
    value: Any
    last: bool = False
    optional: bool = False


class _Probed:
    """A conversation of marked contents. `spec` has a letter for each message.

    `s`, `u`, `a` and `t` are the roles; `c` is an answer of calls, `C` one with content too, `r` an answer with
    reasoning, `k` calls with reasoning.
    """

    def __init__(
        self, spec: str, tools: bool, think: bool | None, calls: int, system_place: str = "first"
    ) -> None:
        self._moved = "s" in spec and system_place != "first"
        self._spec, self._tools, self._think, self._calls = spec, tools, think, calls
        self._marks: list[_Mark] = []
        messages = tuple(self._message(index, letter) for index, letter in enumerate(spec))
        self.conversation = Conversation(messages, _TOOLS if tools else (), think)

    def _message(self, index: int, letter: str) -> dict[str, Any]:
        content, last = _content(index), letter not in self._spec[index + 1 :]
        match letter:
            case "s" if self._moved:
                return {"role": "system", "content": content}
            case "s" | "u" | "t":
                role = {"s": "system", "u": "user", "t": "tool"}[letter]
                if letter == "u" and last and self._moved:
                    self._marks.append(_Mark("system", _content(self._spec.index("s")), optional=True))
                self._marks.append(_Mark(role, content, letter == "u" and last))
                named = {"name": "zqname0", "tool_call_id": "zqcall000"} if letter == "t" else {}
                return {"role": role, "content": content, **named}
        message: dict[str, Any] = {"role": "assistant", "content": ""}
        if letter in "rk":
            message["reasoning_content"] = f"zq{index}thought{index}q"
            self._marks.append(_Mark("reasoning", message["reasoning_content"], optional=True))
        if letter in "arC":
            message["content"] = content
            kind = "content" if letter == "C" else "assistant"
            last = index == len(self._spec) - 1
            self._marks.append(_Mark(kind, content, last, optional=letter == "C"))
        if letter in "cCk":
            message["tool_calls"] = [self._call(index, number) for number in range(self._calls)]
        return message

    def _call(self, index: int, number: int) -> dict[str, Any]:
        name, arguments = f"zqname{index}{number}q", {"a": f"zq{index}{number}v", "b": [1, {"c": 2}]}
        self._marks += [_Mark("name", name), _Mark("arguments", arguments)]
        return {
            "id": f"zqcall0{index}{number}",
            "type": "function",
            "function": {"name": name, "arguments": arguments},
        }

    def cut(self, text: str, found: ProbedFormat) -> dict[Key, str] | None:
        """The texts between the marks; None if they are not all there, once and in order."""
        texts: dict[Key, str] = {}
        styles: dict[str, JsonStyle] = {}
        previous, position = "start", 0
        for mark in self._marks:
            place = _find(text, mark, position)
            if place is None:
                if mark.optional:
                    found.hides_content |= mark.kind == "content"
                    continue
                return None
            start, end, style = place
            if style is not _RAW:
                styles[mark.kind] = style
            key = Key(previous, mark.kind, mark.last, self._tools, self._think)
            if texts.setdefault(key, text[position:start]) != text[position:start]:
                raise _undetermined(key)
            previous, position = mark.kind, end
        if not self.conversation.continues:
            texts[Key(previous, "end", False, self._tools, self._think)] = text[position:]
        if "zqcall0" in text:
            raise not_expressible("it writes the ids of calls, which not every Ollama gives to templates")
        found.styles |= styles
        return {key: _with_tools_marked(one, found) for key, one in texts.items()}


def _content(index: int) -> str:
    """A content that no template writes itself, with signs that JSON escapes."""
    return f'zq{index}"\n<{index}q'


def _find(text: str, mark: _Mark, start: int) -> tuple[int, int, JsonStyle | None] | None:
    forms: Iterable[tuple[JsonStyle | None, str]] = [(style, style.dump(mark.value)) for style in STYLES]
    if isinstance(mark.value, str):
        forms = [(_RAW, mark.value), (STYLES[0], STYLES[0].dump(mark.value))]
        if mark.kind == "name":  # JSON of a name is the name in quotes
            forms = [(_RAW, mark.value)]
    for style, written in forms:
        place = text.find(written, start)
        if place >= 0 and text.count(written) == 1:
            return place, place + len(written), style
    return None


_TOOLS = tuple(
    {
        "type": "function",
        "function": {
            "name": f"zqtool{number}",
            "description": f'Does "{number}".',
            "parameters": {
                "type": "object",
                "required": ["a"],
                "properties": {
                    "a": {"type": "string", "description": "A text"},
                    "b": {"type": ["integer", "null"], "items": {"type": "string"}, "enum": [1, 2]},
                },
            },
        },
    }
    for number in (1, 2)
)


def _with_tools_marked(text: str, found: ProbedFormat) -> str:
    if "zqtool1" not in text:
        return text
    for style, is_function, first, second in _tool_forms():
        start, middle = text.find(first), text.find(second)
        if 0 <= start < middle:
            listed = ToolList(style, is_function, text[start + len(first) : middle])
            if found.tool_list not in (None, listed):
                raise not_expressible("it lists the tools in several ways")
            found.tool_list = listed
            rest = text[:start] + TOOLS_MARK + text[middle + len(second) :]
            if "zqtool" not in rest:
                return rest
    raise not_expressible("it lists the tools in a form that is not their JSON")


def _tool_forms() -> Iterator[tuple[JsonStyle, bool, str, str]]:
    for style in STYLES:
        for is_function in (False, True):
            values: list[Mapping[str, Any]] = [one["function"] if is_function else one for one in _TOOLS]  # type: ignore[misc]
            first, second = map(style.dump, values)
            yield style, is_function, first, second
