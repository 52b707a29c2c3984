"""Calls in the answers of Chat Completions, whole and in deltas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adapterhub.server.generating.conversations import Call
from adapterhub.tool_calling import ToolCallChunk


def message_of(text: str, calls: Sequence[Call]) -> dict[str, Any]:
    """The message of an answer.

    Args:
        text: Its text, which is null beside calls if there is none.
        calls: Its calls.
    """
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if not calls:
        return message
    written = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in calls
    ]
    return message | {"content": text or None, "tool_calls": written}


def part_delta(part: str | ToolCallChunk) -> dict[str, Any]:
    """The delta for a part of an answer. Every part of a call has its index, by which clients join them."""
    if isinstance(part, str):
        return {"content": part}
    delta: dict[str, Any] = {"index": part["index"], "function": {"arguments": part["args"]}}
    if part["name"] is not None:
        delta |= {"id": part["id"], "type": "function"}
        delta["function"] = {"name": part["name"], "arguments": part["args"]}
    return {"tool_calls": [delta]}
