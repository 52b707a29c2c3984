"""Which tools an answer may call, and the grammar that makes its calls valid."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from adapterhub.engine.output_format import OutputFormat, Schema
from adapterhub.engine.tokenizer import Tokenizer
from adapterhub.errors import InvalidRequestError
from adapterhub.langchain.call_format import ID_SIZE, CallFormat

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
            InvalidRequestError: It is none of these, or there is no such function.
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
            raise InvalidRequestError(
                f"tool_choice is {wanted!r}, and no such tool is bound.",
                hint=f"Bound tools: {known}. It may also be 'none', 'auto' or 'any'.",
            )
        return cls(named[:1], required=True, parallel=False)

    def grammar(self, tokenizer: Tokenizer, form: CallFormat, answer: Schema | None = None) -> str:
        """A Lark grammar of answers: calls with valid arguments, or a text where none is required.

        Args:
            tokenizer: The base's; where it has tokens for the marks around a call, those are used.
            form: How calls are written.
            answer: The form of an answer without calls; any text if not given.
        """
        write = _Writer(tokenizer.get_added_vocab())
        names = [f"call{number}" for number in range(len(self.tools))]
        more = f" ({write(form.join)} call)*" if self.parallel and form.join is not None else ""
        lines = [
            "start: calls" if self.required else f"start: calls | {'answer' if answer else 'text'}",
            f"calls: {write(form.mark)} marked",
            f"marked: {write(form.head.removeprefix(form.mark))} call{more} {write(form.tail)}",
            f"call: {' | '.join(names)}",
        ]
        for name, tool in zip(names, self.tools, strict=True):
            lines += _call(name, tool["function"], form, write)
        if "id" in form.parts:
            lines.append(f"ID: /[a-zA-Z0-9]{{{ID_SIZE}}}/")
        if not self.required:
            lines += [f"answer: %json {_schema(answer)}"] if answer else _text_rules(form, write)
        return "\n".join(lines)


def _unwrapped(wanted: Any) -> Any:
    if not isinstance(wanted, Mapping):
        return wanted
    kind, function = wanted.get("type"), wanted.get("function")
    if kind in ("auto", "none", "any", "required"):
        return kind
    return function.get("name") if isinstance(function, Mapping) else wanted.get("name")


@dataclass(frozen=True)
class _Writer:
    """Writes a text in Lark, and what is one token wherever it stands in a text, as that token."""

    added: Mapping[str, int]

    def __call__(self, text: str) -> str:
        marks = sorted((mark for mark in self.added if mark.strip() and mark in text), key=len, reverse=True)
        pieces = re.split(f"({'|'.join(map(re.escape, marks))})", text) if marks else [text]
        written = [
            f"<[{self.added[piece]}]>" if piece in marks else _quoted(piece) for piece in pieces if piece
        ]
        return " ".join(written)

    def has_token(self, text: str) -> bool:
        """Whether there is a token of its own in a text."""
        return any(mark.strip() and mark in text for mark in self.added)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _call(name: str, function: Mapping[str, Any], form: CallFormat, write: _Writer) -> list[str]:
    shown = _quoted(function["name"])[1:-1] if form.quoted else function["name"]
    rule, text = [], ""
    for part, gap in zip(form.parts, (*form.gaps, ""), strict=True):
        if part == "name":
            text += shown + gap
        else:
            rule += [write(text), f"{name}_arguments" if part == "arguments" else "ID"]
            text = gap
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    return [f"{name}: {' '.join([*rule, write(text)])}", f"{name}_arguments: %json {_schema(schema)}"]


def _schema(schema: Schema) -> str:
    closed = cast(OutputFormat, OutputFormat.of(schema=schema)).text
    return json.dumps({**json.loads(closed), "x-guidance": _JSON_STYLE}, ensure_ascii=False)


def _text_rules(form: CallFormat, write: _Writer) -> list[str]:
    # A text that spells the mark would be read as a call.
    mark, before = _literally(form.mark), "" if form.alone else r"(.|\n)*"
    rules = [rf"TEXT: /(.|\n)+/ & ~/{before}{mark}(.|\n)*/"]
    if form.alone:
        return ["text: TEXT", *rules]
    if write.has_token(form.mark):
        return ["text: TEXT calls?", *rules]
    # Where the mark is spelled, the text before it ends only with it: its first signs could be the text's own.
    return ["text: TEXT | opened marked", "opened[lazy]: OPENED", rf"OPENED: /(.|\n)*{mark}/", *rules]


def _literally(text: str) -> str:
    """A regular expression for exactly this text."""
    return "".join(char if char.isalnum() or char in "<_>" else rf"\x{{{ord(char):x}}}" for char in text)
