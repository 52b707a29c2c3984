"""Tool choice: the tools that an answer may call, and the grammar that makes its calls valid."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from adapterhub.engine.decoding.schema_grammar import STYLE, unenforceable_part
from adapterhub.engine.output_format import MAX_CHARACTERS, OutputFormat
from adapterhub.engine.tokenizer import Tokenizer
from adapterhub.errors import GenerationError, InvalidRequestError
from adapterhub.tool_calling.call_format import ID_LENGTH, ToolCallFormat

_MAX_NAMED_TOOLS = 5


@dataclass(frozen=True)
class ToolChoice:
    """The functions that an answer may or must call.

    Attributes:
        tools: The functions that it may call, in OpenAI's format; empty forbids calls.
        required: Whether it must call one.
        parallel: Whether it may call several.
    """

    tools: tuple[Mapping[str, Any], ...] = ()
    required: bool = False
    parallel: bool = True

    @classmethod
    def of(cls, tools: Sequence[Mapping[str, Any]], choice: Any = None, parallel: bool = True) -> ToolChoice:
        """Parses a caller's `tool_choice`.

        Args:
            tools: Functions, each `{"type": "function", "function": {"name", "description", "parameters"}}`.
            choice: None or `"auto"`; `"none"`; `"any"`, `"required"` or True; a function's name; or one of these in the
                formats of OpenAI and Anthropic, such as `{"type": "function", "function": {"name": "add"}}`.
            parallel: Whether one answer may call several; a function chosen by name is called once.

        Raises:
            InvalidRequestError: It is none of these, or there is no such function.
        """
        choice = _unwrap(choice)
        if choice == "none":
            return cls()
        if choice in (None, False, "auto"):
            return cls(tuple(tools), parallel=parallel)
        if choice in (True, "any", "required"):
            if not tools:
                raise InvalidRequestError(
                    f"tool_choice is {choice!r}, and there is no such tool: there are no tools at all.",
                    hint="Give tools (`bind_tools`), or leave tool_choice out.",
                )
            return cls(tuple(tools), required=True, parallel=parallel)
        named = tuple(tool for tool in tools if tool["function"]["name"] == choice)
        if not named:
            known = ", ".join(tool["function"]["name"] for tool in tools) or "none"
            raise InvalidRequestError(
                f"tool_choice is {choice!r}, and there is no such tool.",
                hint=f"Tools: {known}. It may also be 'none', 'auto' or 'any'.",
            )
        return cls(named[:1], required=True, parallel=False)

    def grammar(
        self, tokenizer: Tokenizer, call_format: ToolCallFormat, answer: Mapping[str, Any] | None = None
    ) -> str:
        """The Lark grammar of answers: calls with valid arguments, or a text if no call is required.

        Args:
            tokenizer: The base's; special tokens in the format are matched as tokens.
            call_format: The format of calls.
            answer: The schema of an answer without calls; any text if not given.
        """
        write = _Writer(tokenizer.get_added_vocab())
        names = [f"call{number}" for number in range(len(self.tools))]
        more = (
            f" ({write(call_format.call_separator)} call)*"
            if self.parallel and call_format.call_separator is not None
            else ""
        )
        rest = call_format.prefix.removeprefix(call_format.start_marker)
        lines = [
            "start: calls" if self.required else f"start: calls | {'text' if answer is None else 'answer'}",
            f"calls: {write(call_format.start_marker)} calls_rest",
            f"calls_rest: {write(rest)} call{more} {write(call_format.suffix)}",
            f"call: {' | '.join(names)}",
        ]
        for name, tool in zip(names, self.tools, strict=True):
            lines += _call(name, tool["function"], call_format, write)
        if "id" in call_format.fields:
            lines.append(f"ID: /[a-zA-Z0-9]{{{ID_LENGTH}}}/")
        if answer is not None and not self.required:
            lines.append(f"answer: %json {_schema(answer, 'The schema of the answer')}")
        elif not self.required:
            lines += _text_rules(call_format, write)
        grammar = "\n".join(lines)
        if len(grammar) > MAX_CHARACTERS:
            raise self._too_large(len(grammar))
        return grammar

    def _too_large(self, size: int) -> InvalidRequestError:
        names = ", ".join(tool["function"]["name"] for tool in self.tools[:_MAX_NAMED_TOOLS])
        return InvalidRequestError(
            f"The argument schemas of {len(self.tools)} tools ({names}...) have {size} characters, more than "
            f"{MAX_CHARACTERS}; descriptions do not count.",
            hint="Give fewer tools, or tools with smaller schemas.",
        )


def _unwrap(choice: Any) -> Any:
    if not isinstance(choice, Mapping):
        return choice
    kind, function = choice.get("type"), choice.get("function")
    if kind in ("auto", "none", "any", "required"):
        return kind
    return function.get("name") if isinstance(function, Mapping) else choice.get("name")


@dataclass(frozen=True)
class _Writer:
    """Writes a text in Lark; added tokens, which are one token wherever they stand, as tokens."""

    added: Mapping[str, int]

    def __call__(self, text: str) -> str:
        tokens = sorted(
            (token for token in self.added if token.strip() and token in text), key=len, reverse=True
        )
        parts = re.split(f"({'|'.join(map(re.escape, tokens))})", text) if tokens else [text]
        written = [f"<[{self.added[part]}]>" if part in tokens else _quoted(part) for part in parts if part]
        return " ".join(written)

    def has_token(self, text: str) -> bool:
        """Whether a text contains an added token."""
        return any(token.strip() and token in text for token in self.added)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _call(name: str, function: Mapping[str, Any], call_format: ToolCallFormat, write: _Writer) -> list[str]:
    written_name = _quoted(function["name"])[1:-1] if call_format.quotes_name else function["name"]
    rule, text = [], ""
    for part, separator in zip(call_format.fields, (*call_format.separators, ""), strict=True):
        if part == "name":
            text += written_name + separator
        else:
            rule += [write(text), f"{name}_arguments" if part == "arguments" else "ID"]
            text = separator
    return [
        f"{name}: {' '.join([*rule, write(text)])}",
        f"{name}_arguments: %json {arguments_grammar(function)}",
    ]


def arguments_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments, which are an object whatever else it says."""
    parameters = function.get("parameters") or {"properties": {}}
    return {"type": "object", **parameters}


def arguments_grammar(function: Mapping[str, Any]) -> str:
    """The JSON Schema of a function's arguments, for a grammar.

    Raises:
        InvalidRequestError: A grammar cannot enforce it; the message names function, property and keyword.
    """
    owner, schema = f"The arguments of the tool {function['name']!r}", arguments_schema(function)
    if schema["type"] != "object":
        raise InvalidRequestError(
            f"{owner} cannot be enforced: they are an object, and the schema is one of {schema['type']}.",
            hint="For structured output use a response_format of the type 'json_schema'.",
        )
    return _schema(schema, owner)


def argument_violations(
    functions: Sequence[Mapping[str, Any]], calls: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What the calls of an answer violate that no grammar enforces; most tools say so themselves.

    Args:
        functions: The functions that it may call, in OpenAI's format.
        calls: From `parse_tool_calls`.
    """
    by_name = {tool["function"]["name"]: tool["function"] for tool in functions}
    found = (argument_violation(by_name[call["name"]], call["args"]) for call in calls)
    return [violation for violation in found if violation]


def argument_violation(function: Mapping[str, Any], arguments: Mapping[str, Any]) -> str | None:
    """What a call's arguments violate of the keywords that no grammar enforces; None if nothing."""
    output_format = cast(OutputFormat, OutputFormat.of(schema=arguments_schema(function)))
    try:
        output_format.parse(json.dumps(arguments))
    except GenerationError as error:
        return f"{function['name']}: {error.message}"
    return None


def _schema(schema: Mapping[str, Any], owner: str) -> str:
    try:
        written = json.dumps(schema, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{owner} cannot be enforced: {error!s:.100}.") from error
    return _written_schema(written, owner)


@lru_cache(maxsize=256)  # an agent sends the same tools with each request
def _written_schema(written: str, owner: str) -> str:
    schema = json.loads(written)
    try:
        text = cast(OutputFormat, OutputFormat.of(schema=schema)).text
    except InvalidRequestError as error:
        raise InvalidRequestError(f"{owner} cannot be enforced: {error.message}", hint=error.hint) from error
    part = unenforceable_part(text)
    if part:
        raise InvalidRequestError(f"{owner} cannot be enforced: {part}.")
    return json.dumps(
        {**json.loads(text), "x-guidance": {**STYLE, "coerce_one_of": True}}, ensure_ascii=False
    )


def _text_rules(call_format: ToolCallFormat, write: _Writer) -> list[str]:
    # A text that contains the start marker would be parsed as a call.
    marker, before = (
        _literal_pattern(call_format.start_marker),
        "" if call_format.only_at_start else r"(.|\n)*",
    )
    rules = [rf"TEXT: /(.|\n)+/ & ~/{before}{marker}(.|\n)*/"]
    if call_format.only_at_start:
        return ["text: TEXT", *rules]
    if write.has_token(call_format.start_marker):
        return ["text: TEXT calls?", *rules]
    # If the marker is ordinary text, the text before it is matched up to and including the whole marker.
    return ["text: TEXT | opened calls_rest", "opened[lazy]: OPENED", rf"OPENED: /(.|\n)*{marker}/", *rules]


def _literal_pattern(text: str) -> str:
    """A regular expression that matches exactly this text."""
    return "".join(char if char.isalnum() or char in "<_>" else rf"\x{{{ord(char):x}}}" for char in text)
