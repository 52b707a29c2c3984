"""Conversion of LangChain messages to those of chat templates."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, ToolMessage

from adapterhub.errors import InvalidRequestError
from adapterhub.langchain.tool_call_format import CALL, CALL_END, ID_LENGTH, ToolCallFormat
from adapterhub.requests.prompts import ROLES

_ROLE_OF_TYPE = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "function": "tool"}
_TEXTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "text-plain": "text",
    "refusal": "refusal",
    "tool_result": "content",
    "custom_tool_call_output": "output",
    "search_result": "content",
    "json": "json",
}
"""Content blocks that are read, and the key of each that holds its text, its blocks or its data."""
_SKIPPED = re.compile("tool_(use|call|result)|_call$|^input_json_delta$|reasoning|thinking|non_standard")
"""Types of content blocks that are skipped: `tool_calls` repeat them, or they are for the provider that wrote them."""


def convert_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Converts messages to those of `AdapterHub.generate`.

    Blocks of text are separate lines. In the history, a placeholder such as `[image]` stands for what is not text.

    Raises:
        InvalidRequestError: A message has an unknown role, or the user asks now about content that is not text.
    """
    for message in messages[-1:]:
        _check_question(message)
    return [_convert(message) for message in messages]


def fit_tool_calls(
    messages: Sequence[Mapping[str, Any]], call_format: ToolCallFormat
) -> list[dict[str, Any]]:
    """Fits the tool calls to a template that renders them: ids and arguments as it expects them.

    Args:
        messages: From `convert_messages`.
        call_format: The template's tool call format.
    """
    return [_fit(message, call_format) for message in messages]


def inline_tool_calls(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Writes tools, calls and results as plain text, for a template that does not render them.

    The tools, one JSON object a line, precede the first user message; calls become part of the assistant's text;
    consecutive results, and what the user says next to them, become one user message, because templates often want
    turns to alternate.

    Args:
        messages: From `convert_messages`.
        tools: Functions as JSON Schema.
    """
    inlined: list[dict[str, Any]] = []
    previous = None
    for message in messages:
        role = message["role"]
        turn = {"role": "user", "content": _result(message)} if role == "tool" else _inline_calls(message)
        if {previous, role} in ({"tool"}, {"tool", "user"}):
            inlined[-1]["content"] += f"\n{turn['content']}"
        else:
            inlined.append(turn)
        previous = role
    if tools:
        first = next((each for each in inlined if each["role"] == "user"), None)
        if first is None:
            first = {"role": "user", "content": ""}
            inlined.append(first)
        first["content"] = f"{_tool_instructions(tools)}\n\n{first['content']}".rstrip()
    return inlined


def _convert(message: BaseMessage) -> dict[str, Any]:
    converted: dict[str, Any] = {"role": _role(message), "content": _text(message)}
    if isinstance(message, AIMessage):
        calls: list[tuple[str | None, str, Any]] = [
            (call["id"], call["name"], call["args"]) for call in message.tool_calls
        ]
        # A call whose arguments are no JSON keeps them as text, for the result that says so.
        calls += [(bad["id"], bad["name"] or "", bad["args"] or "") for bad in message.invalid_tool_calls]
        if calls:
            converted["tool_calls"] = [
                {"type": "function", "id": call_id, "function": {"name": name, "arguments": arguments}}
                for call_id, name, arguments in calls
            ]
    if isinstance(message, ToolMessage):
        converted["tool_call_id"] = message.tool_call_id
        if message.name:
            converted["name"] = message.name
    return converted


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        role = {**_ROLE_OF_TYPE, "developer": "system"}.get(message.role, message.role)
    else:
        role = _ROLE_OF_TYPE.get(message.type.removesuffix("MessageChunk").lower(), message.type)
    if role not in ROLES:
        raise InvalidRequestError(
            f"A message with the role {role!r} cannot be rendered.", hint=f"Known: {ROLES}."
        )
    return role


def _text(message: BaseMessage) -> str:
    return message.content if isinstance(message.content, str) else _lines(message.content)


def _lines(parts: Iterable[str | Mapping[str, Any]]) -> str:
    return "\n".join(text for part in parts if (text := _part(part)))


def _part(part: str | Mapping[str, Any]) -> str:
    """The text of a content block; empty if it is skipped."""
    if isinstance(part, str):
        return part
    kind = part.get("type")
    if not isinstance(kind, str):  # a tool's data
        return json.dumps(part, ensure_ascii=False, default=str)
    read = _read(part)
    return read if read is not None else f"[{kind.removesuffix('_url')}]"


def _read(part: Mapping[str, Any]) -> str | None:
    """The text of a block with a type, empty if it is skipped; None if it is not text."""
    match part:
        case {"type": kind} if kind in _TEXTS:
            return _value(part.get(_TEXTS[kind]))
        case {"type": "document", "source": {"type": "text", "data": str(text)}}:
            return text
        case {"type": kind} if _SKIPPED.search(kind):
            return ""
    return None


def _value(value: Any) -> str:
    match value:
        case None:
            return ""
        case str():
            return value
        case [*parts] if all(isinstance(part, str | Mapping) for part in parts):
            return _lines(parts)
    return json.dumps(value, ensure_ascii=False, default=str)


def _check_question(message: BaseMessage) -> None:
    """The user's newest message is what the answer is about: a placeholder would have it made up."""
    for part in message.content if isinstance(message, HumanMessage) else ():
        if isinstance(part, Mapping) and isinstance(part.get("type"), str) and _read(part) is None:
            raise InvalidRequestError(
                f"The message has content of the type {part['type']!r}; only text is supported.",
                hint="Send its text, or a description of it.",
            )


def _fit(message: Mapping[str, Any], call_format: ToolCallFormat) -> dict[str, Any]:
    fitted = dict(message)
    if "tool_calls" in message:
        fitted["tool_calls"] = [_fit_call(call, call_format) for call in message["tool_calls"]]
    if "tool_call_id" in message:
        fitted["tool_call_id"] = _fit_id(message["tool_call_id"], call_format)
    return fitted


def _fit_call(call: Mapping[str, Any], call_format: ToolCallFormat) -> dict[str, Any]:
    function = dict(call["function"])
    if call_format.arguments_as_string and not isinstance(function["arguments"], str):
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "id": _fit_id(call["id"], call_format), "function": function}


def _fit_id(given: str | None, call_format: ToolCallFormat) -> str | None:
    """Maps the id of another model's call to the format that templates with ids accept, always in the same way."""
    if "id" not in call_format.fields or re.fullmatch(rf"[a-zA-Z0-9]{{{ID_LENGTH}}}", given or ""):
        return given
    return hashlib.sha256((given or "").encode()).hexdigest()[:ID_LENGTH]


def _result(message: Mapping[str, Any]) -> str:
    return f"<tool_response>\n{message['content']}\n</tool_response>"


def _inline_calls(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = [call["function"] for call in message.get("tool_calls", ())]
    written = [f"{CALL}\n{json.dumps(call, ensure_ascii=False)}\n{CALL_END}" for call in calls]
    return {
        "role": message["role"],
        "content": "\n".join([*([message["content"]] if message["content"] else []), *written]),
    }


def _tool_instructions(tools: Sequence[Mapping[str, Any]]) -> str:
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    call = '{"name": "<name>", "arguments": {<arguments>}}'
    example = f"{CALL}\n{call}\n{CALL_END}"
    return f"You may call these functions:\n<tools>\n{listed}\n</tools>\nTo call one, answer with:\n{example}"
