"""Conversion of the input items of a response to the messages of chat templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adapterhub.server.protocol.responses import (
    Content,
    FunctionCallItem,
    FunctionCallOutputItem,
    InputItem,
    MessageItem,
    RefusalPart,
)
from adapterhub.server.protocol.tools import call_part


def to_messages(given: str | Sequence[InputItem], instructions: str | None) -> list[dict[str, Any]]:
    """Converts the input of a response.

    Calls that follow each other, or an answer's text, are one turn of the assistant.

    Args:
        given: One question, or the items of a conversation.
        instructions: The system prompt.
    """
    messages: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    items = [MessageItem(role="user", content=given)] if isinstance(given, str) else given
    for item in items:
        if isinstance(item, FunctionCallItem):
            _add_call(messages, item)
        elif isinstance(item, FunctionCallOutputItem):
            messages.append({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)})
        elif isinstance(item, MessageItem):
            role = "system" if item.role == "developer" else item.role
            messages.append({"role": role, "content": _text(item.content)})
    return messages


def _add_call(messages: list[dict[str, Any]], item: FunctionCallItem) -> None:
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    calls = messages[-1].setdefault("tool_calls", [])
    calls.append(call_part(item.call_id, item.name, item.arguments))


def _text(content: Content) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.refusal if isinstance(part, RefusalPart) else part.text for part in content)
