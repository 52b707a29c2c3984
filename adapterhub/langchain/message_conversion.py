"""Conversion of LangChain messages to those of chat templates."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, ToolMessage

from adapterhub.errors import InvalidRequestError
from adapterhub.langchain.tool_call_format import CALL, CALL_END, ID_LENGTH, ToolCallFormat
from adapterhub.requests.prompts import ROLES

_ROLE_OF_TYPE = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "function": "tool"}
_IGNORED = frozenset(
    {"tool_use", "tool_call", "input_json_delta", "tool_call_chunk", "reasoning", "thinking"}
)
"""Content blocks of an assistant that are ignored: its `tool_calls` repeat them, or they are no part of the answer."""


def convert_messages(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Converts messages to those of `AdapterHub.generate`.

    Raises:
        InvalidRequestError: A message has an unknown role or content that is not text.
    """
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
    consecutive results become one user message.

    Args:
        messages: From `convert_messages`.
        tools: Functions as JSON Schema.
    """
    inlined: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        if message["role"] != "tool":
            inlined.append(_inline_calls(message))
        elif index and messages[index - 1]["role"] == "tool":
            inlined[-1]["content"] += f"\n{_result(message)}"
        else:
            inlined.append({"role": "user", "content": _result(message)})
    if tools:
        first = next((each for each in inlined if each["role"] == "user"), None)
        if first is None:
            first = {"role": "user", "content": ""}
            inlined.append(first)
        first["content"] = f"{_tool_instructions(tools)}\n\n{first['content']}".rstrip()
    return inlined


def _convert(message: BaseMessage) -> dict[str, Any]:
    converted: dict[str, Any] = {"role": _role(message), "content": _text(message)}
    if isinstance(message, AIMessage) and message.tool_calls:
        converted["tool_calls"] = [
            {
                "type": "function",
                "id": call["id"],
                "function": {"name": call["name"], "arguments": call["args"]},
            }
            for call in message.tool_calls
        ]
    if isinstance(message, ToolMessage):
        converted["tool_call_id"] = message.tool_call_id
        if message.name:
            converted["name"] = message.name
    return converted


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        role = {"developer": "system"}.get(message.role, message.role)
    else:
        role = _ROLE_OF_TYPE.get(message.type.removesuffix("MessageChunk").lower(), message.type)
    if role not in ROLES:
        raise InvalidRequestError(
            f"A message with the role {role!r} cannot be rendered.", hint=f"Known: {ROLES}."
        )
    return role


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(_part(part) for part in message.content)


def _part(part: str | Mapping[str, Any]) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type")
    if kind == "text":
        return str(part["text"])
    if kind in _IGNORED:
        return ""
    raise InvalidRequestError(
        f"A message has content of the type {kind!r}; only text is supported.",
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
    if call_format.arguments_as_string:
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
