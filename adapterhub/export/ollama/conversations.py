"""A conversation as Ollama holds it, and as it gives it to a template.

Messages of one role in a row are joined, but tool results; `.System` has all system messages. Arguments of calls and
properties of tools are maps, so in the order of their names; a tool has the fields that Ollama's types have, in their
order: https://github.com/ollama/ollama/blob/main/api/types.go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapterhub.engine.tokenizer import Message
from adapterhub.export.ollama.go_template import GoStruct

_PROPERTY_FIELDS = ("anyOf", "type", "items", "description", "enum", "properties", "required")


@dataclass(frozen=True)
class Conversation:
    """What a request to Ollama brings.

    Attributes:
        messages: In the form of transformers.
        tools: Descriptions of functions.
        think: The request's `think`; None if it has none.
    """

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()
    think: bool | None = None

    @property
    def continues(self) -> bool:
        """Whether an answer of the assistant has begun, which Ollama then continues."""
        return bool(self.messages[-1]["role"] == "assistant")

    def collated(self) -> Conversation:
        """As Ollama holds it: messages of one role in a row joined, names sorted, unknown fields left out."""
        joined: list[dict[str, Any]] = []
        for message in self.messages:
            if joined and joined[-1]["role"] == message["role"] != "tool":
                joined[-1]["content"] += "\n\n" + message["content"]
            else:
                joined.append(dict(message))
        for message in joined:
            if calls := message.get("tool_calls"):
                message["tool_calls"] = [_call(call) for call in calls]
        return Conversation(tuple(joined), tuple(map(_known, self.tools)), self.think)

    def values(self) -> dict[str, Any]:
        """What Ollama gives the template."""
        held = self.collated()
        system = [one["content"] for one in self.messages if one["role"] == "system"]
        return {
            "System": "\n\n".join(system),
            "Messages": [_message(one) for one in held.messages],
            "Tools": [_tool(one) for one in held.tools],
            "Response": "",
            "Think": bool(self.think),
            "ThinkLevel": "",
            "IsThinkSet": self.think is not None,
        }


def _message(message: Message) -> dict[str, Any]:
    calls = [
        {
            "ID": call.get("id", ""),
            "Function": {
                "Index": 0,
                "Name": call["function"]["name"],
                "Arguments": call["function"]["arguments"],
            },
        }
        for call in message.get("tool_calls") or ()
    ]
    return {
        "Role": message["role"],
        "Content": message.get("content") or "",
        "Thinking": message.get("reasoning_content") or "",
        "ToolCalls": calls,
        "ToolName": message.get("name", ""),
        "ToolCallID": message.get("tool_call_id", ""),
    }


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": _sorted(function["arguments"])}}


def _tool(tool: Mapping[str, Any]) -> GoStruct:
    return GoStruct({"Type": tool["type"], "Function": GoStruct({}, tool["function"])}, tool)


def _known(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as Ollama's types hold it: their fields in order, and no others."""
    function = tool["function"]
    given = function["parameters"]
    properties = given.get("properties") or {}
    parameters = {
        "type": given["type"],
        **({"required": given["required"]} if given.get("required") else {}),
        "properties": {name: _property(properties[name]) for name in sorted(properties)},
    }
    described = {"name": function["name"], "description": function.get("description", "")}
    return {"type": tool["type"], "function": {**described, "parameters": parameters}}


def _property(given: Mapping[str, Any]) -> dict[str, Any]:
    held = {name: _sorted(given[name]) for name in _PROPERTY_FIELDS if name in given}
    nested = given.get("properties") or {}
    return held | ({"properties": {name: _property(one) for name, one in nested.items()}} if nested else {})


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(one) for one in value] if isinstance(value, list) else value
