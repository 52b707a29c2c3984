"""Conversion of LangChain messages to those of chat templates."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, ChatMessage, HumanMessage, ToolMessage

from adapterhub.errors import InvalidRequestError
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
