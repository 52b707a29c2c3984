"""Tool calls: the grammar that makes them valid, and reading them while they arrive.

A call is written as Hermes and Qwen write it, and as the demo's chat template does:

    <tool_call>
    {"name": "add", "arguments": {"a": 1, "b": 2}}
    </tool_call>
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from uuid import uuid4

from langchain_core.messages import ToolCall
from langchain_core.messages.tool import ToolCallChunk, tool_call_chunk

from adapterhub.errors import ConfigError, GenerationError
from adapterhub.langchain.messages import CALL, CALL_END
from adapterhub.prompts import Tokenizer
from adapterhub.structure import OutputFormat, Schema

_HEAD = re.compile(r'\n\{"name": ("(?:[^"\\]|\\.)*"), "arguments": ')
_TAIL = "}\n" + CALL_END
_OPENING = "\n" + CALL
_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}


@dataclass(frozen=True)
class ToolChoice:
    """Which functions the answer may or must call.

    Attributes:
        tools: Those that it may call, as OpenAI describes functions; none forbids calls.
        required: Whether it has to call one.
        parallel: Whether it may call several.
    """

    tools: tuple[Mapping[str, Any], ...] = ()
    required: bool = False
    parallel: bool = True

    @classmethod
    def of(cls, tools: Sequence[Mapping[str, Any]], wanted: Any = None, parallel: bool = True) -> ToolChoice:
        """What a caller's `tool_choice` means.

        Args:
            tools: Functions, each `{"type": "function", "function": {"name", "description", "parameters"}}`.
            wanted: None or `"auto"`; `"none"`; `"any"`, `"required"` or True; a function's name; or one of these in the
                forms of OpenAI and Anthropic, such as `{"type": "function", "function": {"name": "add"}}`.
            parallel: Whether one answer may call several; of a function that is named it calls one.

        Raises:
            ConfigError: It is none of these, or there is no such function.
        """
        wanted = _unwrapped(wanted)
        if wanted == "none":
            return cls()
        if wanted in (None, False, "auto"):
            return cls(tuple(tools), parallel=parallel)
        if wanted in (True, "any", "required") and tools:
            return cls(tuple(tools), required=True, parallel=parallel)
        named = tuple(tool for tool in tools if tool["function"]["name"] == wanted)
        if not named:
            known = ", ".join(tool["function"]["name"] for tool in tools) or "none"
            raise ConfigError(
                f"tool_choice is {wanted!r}, and no such tool is bound.",
                hint=f"Bound tools: {known}. It may also be 'none', 'auto' or 'any'.",
            )
        return cls(named[:1], required=True, parallel=False)

    def grammar(self, tokenizer: Tokenizer, answer: Schema | None = None) -> str:
        """A Lark grammar of answers: calls with valid arguments, or a text where none is required.

        Args:
            tokenizer: The base's; where it has tokens for the marks around a call, those are used.
            answer: The form of an answer without calls; any text if not given.
        """
        lines = [
            "start: calls" if self.required else f"start: calls | {'answer' if answer else 'text calls?'}"
        ]
        lines.append('calls: call ("\\n" call)*' if self.parallel else "calls: call")
        names = [f"call{number}" for number in range(len(self.tools))]
        opening, end = (_mark(tokenizer, mark) for mark in (CALL, CALL_END))
        lines.append(f'call: {opening} "\\n" ({" | ".join(names)}) "\\n" {end}')
        for name, tool in zip(names, self.tools, strict=True):
            lines += _call(name, tool["function"])
        if not self.required:
            lines += [f"answer: %json {_schema(answer)}"] if answer else _text_rules()
        return "\n".join(lines)


def _unwrapped(wanted: Any) -> Any:
    if not isinstance(wanted, Mapping):
        return wanted
    kind, function = wanted.get("type"), wanted.get("function")
    if kind in ("auto", "none", "any", "required"):
        return kind
    return function.get("name") if isinstance(function, Mapping) else wanted.get("name")


def _mark(tokenizer: Tokenizer, mark: str) -> str:
    """In Lark a name in angle brackets is a special token; other tokenizers spell the text."""
    tokens = tokenizer.encode(mark, add_special_tokens=False)
    atomic = len(tokens) == 1 and tokenizer.decode(tokens, skip_special_tokens=True) == mark
    return mark if atomic else json.dumps(mark)


def _call(name: str, function: Mapping[str, Any]) -> list[str]:
    head = f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": '
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    return [
        f'{name}: {json.dumps(head, ensure_ascii=False)} {name}_arguments "}}"',
        f"{name}_arguments: %json {_schema(schema)}",
    ]


def _schema(schema: Schema) -> str:
    closed = cast(OutputFormat, OutputFormat.of(schema=schema)).text
    return json.dumps({**json.loads(closed), "x-guidance": _JSON_STYLE}, ensure_ascii=False)


def _text_rules() -> list[str]:
    # A text that spells the mark would be read as a call.
    return [r"text: TEXT", rf"TEXT: /(.|\n)+/ & ~/(.|\n)*{CALL}(.|\n)*/"]


@dataclass
class CallReader:
    """Tells calls from text while an answer arrives; its calls are in the form that `ToolChoice.grammar` gives them.

    Attributes:
        count: How many calls have begun.
    """

    count: int = 0
    _held: str = ""
    _state: str = field(default="text", repr=False)

    def push(self, piece: str) -> list[str | ToolCallChunk]:
        """Takes a piece of the answer and returns what is certain now: text, and pieces of calls."""
        self._held += piece
        found: list[str | ToolCallChunk] = []
        while step := getattr(self, f"_{self._state}")():
            found += step
        return [part for part in found if part]

    def flush(self) -> list[str]:
        """The text that was held back, at the answer's end."""
        rest, self._held = self._held, ""
        if self._state in ("name", "arguments"):
            raise GenerationError("The answer ended within a tool call.", hint="Raise max_tokens.")
        return [rest] if rest and self._state == "text" else []

    def _text(self) -> list[str | ToolCallChunk]:
        before, mark, after = self._held.partition(CALL)
        if not mark:
            return self._release(_OPENING, CALL)
        self._held, self._state = after, "name"
        return [before.removesuffix("\n"), ""]

    def _between(self) -> list[str | ToolCallChunk]:
        _, mark, after = self._held.partition(CALL)
        if not mark:
            return []
        self._held, self._state = after, "name"
        return [""]

    def _name(self) -> list[str | ToolCallChunk]:
        head = _HEAD.match(self._held)
        if not head:
            return []
        self._held, self._state = self._held[head.end() :], "arguments"
        self.count += 1
        return [self._chunk(name=json.loads(head[1]), id=f"call_{uuid4().hex[:24]}", args="")]

    def _arguments(self) -> list[str | ToolCallChunk]:
        arguments, mark, after = self._held.partition(_TAIL)
        if not mark:
            return [self._chunk(args=str(text)) for text in self._release(_TAIL)]
        self._held, self._state = after, "between"
        return [self._chunk(args=arguments)]

    def _release(self, *marks: str) -> list[str | ToolCallChunk]:
        """What is held, but for an end that may begin a mark."""
        keep = max(_overlap(self._held, mark) for mark in marks)
        released = self._held[: len(self._held) - keep]
        self._held = self._held[len(released) :]
        return [released] if released else []

    def _chunk(self, *, args: str, name: str | None = None, id: str | None = None) -> ToolCallChunk:  # noqa: A002
        return tool_call_chunk(name=name, args=args, id=id, index=self.count - 1)


def _overlap(text: str, mark: str) -> int:
    """The length of the longest end of a text that begins a mark."""
    return next((size for size in range(len(mark) - 1, 0, -1) if text.endswith(mark[:size])), 0)


def read_calls(answer: str) -> tuple[str, list[ToolCall]]:
    """A whole answer's text and its calls.

    Raises:
        GenerationError: A call is not whole; answers in the grammar's form always are.
    """
    reader = CallReader()
    parts = [*reader.push(answer), *reader.flush()]
    text = "".join(part for part in parts if isinstance(part, str))
    chunks = [part for part in parts if not isinstance(part, str)]
    return text, [_joined(chunks, number) for number in range(reader.count)]


def _joined(chunks: Sequence[ToolCallChunk], number: int) -> ToolCall:
    mine = [chunk for chunk in chunks if chunk["index"] == number]
    arguments = "".join(chunk["args"] or "" for chunk in mine)
    return ToolCall(
        name=mine[0]["name"] or "", args=json.loads(arguments), id=mine[0]["id"], type="tool_call"
    )
