"""Tool calls and their results in a conversation, as chat templates take them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from adapterhub.tool_calling.call_format import CALL, CALL_END, ID_LENGTH, ToolCallFormat


def fit_tool_calls(
    messages: Sequence[Mapping[str, Any]], call_format: ToolCallFormat
) -> list[dict[str, Any]]:
    """Fits the tool calls to a template that renders them: ids and arguments as it expects them.

    Args:
        messages: `{"role", "content"}` messages, of which answers may have `tool_calls` as OpenAI has them, with the
            arguments as an object or as text, and results a `tool_call_id`.
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
        messages: As in `fit_tool_calls`.
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
