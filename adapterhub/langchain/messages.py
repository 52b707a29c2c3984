"""LangChain's messages as a base's chat template takes them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, ToolMessage

from adapterhub.errors import InvalidRequestError
from adapterhub.langchain.call_format import CALL, CALL_END, ID_SIZE, CallFormat
from adapterhub.requests.prompts import ROLES

_ROLE_OF_TYPE = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "function": "tool"}
_UNSEEN = frozenset({"tool_use", "tool_call", "input_json_delta", "tool_call_chunk", "reasoning", "thinking"})
"""Parts of an assistant's content that its `tool_calls` hold too, or that were never part of the answer."""


def as_turns(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """The messages as `adapterhub` takes them.

    Raises:
        InvalidRequestError: A message is of no known kind, or its content is more than text.
    """
    return [_turn(message) for message in messages]


def in_form(turns: Sequence[Mapping[str, Any]], form: CallFormat) -> list[dict[str, Any]]:
    """The same conversation for a base whose template writes calls: ids and arguments as the template takes them.

    Args:
        turns: From `as_turns`.
        form: How the template writes calls.
    """
    return [_fitted(turn, form) for turn in turns]


def in_words(turns: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same conversation for a base whose template does not know tools: everything about them is plain text.

    The tools, one JSON object a line, stand before the first message of the user; calls are written into the
    assistant's text; results that follow each other become one message of the user.

    Args:
        turns: From `as_turns`.
        tools: Functions as JSON Schema.
    """
    worded: list[dict[str, Any]] = []
    for place, turn in enumerate(turns):
        if turn["role"] != "tool":
            worded.append(_with_written_calls(turn))
        elif place and turns[place - 1]["role"] == "tool":
            worded[-1]["content"] += f"\n{_result(turn)}"
        else:
            worded.append({"role": "user", "content": _result(turn)})
    if tools:
        first = next((turn for turn in worded if turn["role"] == "user"), None)
        if first is None:
            first = {"role": "user", "content": ""}
            worded.append(first)
        first["content"] = f"{_offer(tools)}\n\n{first['content']}".rstrip()
    return worded


def _turn(message: BaseMessage) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": _role(message), "content": _text(message)}
    if isinstance(message, AIMessage) and message.tool_calls:
        turn["tool_calls"] = [
            {
                "type": "function",
                "id": call["id"],
                "function": {"name": call["name"], "arguments": call["args"]},
            }
            for call in message.tool_calls
        ]
    if isinstance(message, ToolMessage):
        turn["tool_call_id"] = message.tool_call_id
        if message.name:
            turn["name"] = message.name
    return turn


def _role(message: BaseMessage) -> str:
    if isinstance(message, ChatMessage):
        role = {"developer": "system"}.get(message.role, message.role)
    else:
        role = _ROLE_OF_TYPE.get(message.type.removesuffix("MessageChunk").lower(), message.type)
    if role not in ROLES:
        raise InvalidRequestError(
            f"A message of the kind {role!r} cannot be shown to a base.", hint=f"Known: {ROLES}."
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
    if kind in _UNSEEN:
        return ""
    raise InvalidRequestError(
        f"A message holds content of the type {kind!r}, and the base reads text only.",
        hint="Send its text, or a description of it.",
    )


def _fitted(turn: Mapping[str, Any], form: CallFormat) -> dict[str, Any]:
    fitted = dict(turn)
    if "tool_calls" in turn:
        fitted["tool_calls"] = [_fitted_call(call, form) for call in turn["tool_calls"]]
    if "tool_call_id" in turn:
        fitted["tool_call_id"] = _fitted_id(turn["tool_call_id"], form)
    return fitted


def _fitted_call(call: Mapping[str, Any], form: CallFormat) -> dict[str, Any]:
    function = dict(call["function"])
    if form.text_arguments:
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return {**call, "id": _fitted_id(call["id"], form), "function": function}


def _fitted_id(given: str | None, form: CallFormat) -> str | None:
    """An id that is made elsewhere, in the form that templates which show ids take: the same one for the same."""
    if "id" not in form.parts or re.fullmatch(rf"[a-zA-Z0-9]{{{ID_SIZE}}}", given or ""):
        return given
    return hashlib.sha256((given or "").encode()).hexdigest()[:ID_SIZE]


def _result(turn: Mapping[str, Any]) -> str:
    return f"<tool_response>\n{turn['content']}\n</tool_response>"


def _with_written_calls(turn: Mapping[str, Any]) -> dict[str, Any]:
    calls = [call["function"] for call in turn.get("tool_calls", ())]
    written = [f"{CALL}\n{json.dumps(call, ensure_ascii=False)}\n{CALL_END}" for call in calls]
    return {
        "role": turn["role"],
        "content": "\n".join([*([turn["content"]] if turn["content"] else []), *written]),
    }


def _offer(tools: Sequence[Mapping[str, Any]]) -> str:
    listed = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    form = '{"name": "<name>", "arguments": {<arguments>}}'
    example = f"{CALL}\n{form}\n{CALL_END}"
    return f"You may call these functions:\n<tools>\n{listed}\n</tools>\nTo call one, answer with:\n{example}"
