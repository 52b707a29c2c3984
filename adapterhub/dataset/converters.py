"""From a row of a source to a conversation.

A converter is a function from a row to the keys of a record: `messages`, and `tools` if there are any. It reads columns
by names of its own, which a source's `mapping` changes to the columns' names. A row that it cannot convert raises
`UnusableRowError`, whose reason is counted on the data card.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from adapterhub.dataset.columns import Columns, UnusableRowError, filled_prompt

Message = dict[str, Any]
Conversation = dict[str, Any]
Converter = Callable[[Columns], Conversation]


def messages(columns: Columns) -> Conversation:
    """OpenAI's and transformers' format: `messages` with `role` and `content`, and `tools`."""
    found = columns.value("messages", "conversation")
    if isinstance(found, dict) and all(
        isinstance(values, list) for values in found.values()
    ):  # one for each key
        found = [dict(zip(found, values, strict=False)) for values in zip(*found.values(), strict=False)]
    return _conversation([_message(message) for message in _objects(found, "messages")], columns)


def sharegpt(columns: Columns) -> Conversation:
    """ShareGPT: `conversations` with `from` (human, gpt, function_call, observation ...) and `value`."""
    role, content = (columns.mapping.get(name, name) for name in ("from", "value"))
    turns = _objects(columns.value("conversations"), "conversations")
    return _conversation([_sharegpt_message(turn, role, content) for turn in turns], columns)


def alpaca(columns: Columns) -> Conversation:
    """Alpaca: `instruction`, `input` on a line of its own, `output`; `history` as in LLaMA-Factory."""
    request = _joined("\n", columns.required("instruction"), columns.text("input"))
    return _conversation(
        [*_history(columns), *_turn(request, columns.required("output", "response"))], columns
    )


def dolly(columns: Columns) -> Conversation:
    """Dolly: `instruction`, `context` as a paragraph of its own, `response`."""
    request = _joined("\n\n", columns.required("instruction"), columns.text("context"))
    return _conversation(_turn(request, columns.required("response", "output")), columns)


def reasoning(columns: Columns) -> Conversation:
    """A question with `reasoning`, which becomes a `<think>` block at the start of the answer, and `output`."""
    request = _joined(
        "\n", columns.required("instruction", "prompt", "question", "problem"), columns.text("input")
    )
    thoughts = columns.required("reasoning", "thinking", "reasoning_content", "think").strip()
    answer = columns.required("output", "response", "answer", "solution", "content")
    return _conversation(_turn(request, f"<think>\n{thoughts}\n</think>\n\n{answer}"), columns)


def prompt_completion(columns: Columns) -> Conversation:
    """TRL's `prompt` and `completion`, each a text or a list of messages; also `text`, or `question` and `answer`."""
    prompt, completion = columns.value("prompt", "question"), columns.value("completion", *_ANSWERS)
    if isinstance(prompt, list) and isinstance(completion, list):
        return _conversation([_message(one) for one in _objects([*prompt, *completion], "prompt")], columns)
    request = columns.text("prompt", "question") or filled_prompt(columns)
    if not request:
        raise UnusableRowError("no prompt")
    return _conversation(_turn(request, columns.required("completion", *_ANSWERS)), columns)


def text(columns: Columns) -> Conversation:
    """Plain text: an answer to one of `prompts`, or without a request."""
    answer, request = columns.required("text", "content"), filled_prompt(columns)
    return _conversation(_turn(request, answer) if request else _turn("", answer)[1:], columns)


_ANSWERS = ("text", "answer", "response", "output")
CONVERTERS: dict[str, Converter] = {
    "messages": messages,
    "sharegpt": sharegpt,
    "alpaca": alpaca,
    "dolly": dolly,
    "reasoning": reasoning,
    "prompt_completion": prompt_completion,
    "text": text,
}
"""Name of a converter in a configuration -> the converter."""
_NAMES = """
messages tools system conversations from value instruction input output history context response reasoning
prompt completion text theme rating
"""
COLUMN_NAMES = frozenset(_NAMES.split())
"""The names by which converters read columns, which a mapping may change."""
WITH_PROMPTS = ("prompt_completion", "text")
"""The converters that take the user's message from `prompts` where a row has none."""


def detect_converter(columns: Columns) -> str:
    """The converter that fits a row's columns.

    Raises:
        UnusableRowError: None does.
    """
    has = columns.has
    found = (
        ("messages", has("messages")),
        ("sharegpt", has("conversations")),
        ("reasoning", has("reasoning", "thinking", "reasoning_content")),
        ("dolly", has("instruction") and has("context")),
        ("alpaca", has("instruction")),
        ("prompt_completion", has("prompt", "question")),
        ("text", has("text")),
    )
    for name, fits in found:
        if fits:
            return name
    raise UnusableRowError("no converter knows these columns")


_OPENAI_ROLES = {"developer": "system", "function": "tool"}
_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "function_call",
    "tool_call": "function_call",
    "observation": "tool",
    "function_response": "tool",
    "tool": "tool",
    "tool_response": "tool",
}


def _sharegpt_message(turn: Mapping[str, Any], role_key: str, content_key: str) -> Message:
    role = _ROLES.get(str(turn.get(role_key, turn.get("role"))).lower())
    content = turn.get(content_key, turn.get("content"))
    if role is None:
        raise UnusableRowError("unknown role")
    if not isinstance(content, str):
        raise UnusableRowError("a message is not text")
    if role == "function_call":
        return {"role": "assistant", "tool_calls": list(_tool_calls(content))}
    return {"role": role, "content": content}


def _tool_calls(content: str) -> Iterator[Message]:
    calls = _parsed(content, "a tool call is not JSON")
    for call in _objects(calls if isinstance(calls, list) else [calls], "tool call"):
        yield {"type": "function", "function": _function_call(call)}


def _function_call(call: Mapping[str, Any]) -> Message:
    """Chat templates take arguments as an object; OpenAI and ShareGPT write them as text too."""
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _parsed(arguments, "a tool call's arguments are not JSON")
    if not isinstance(call.get("name"), str) or not isinstance(arguments, dict):
        raise UnusableRowError("a tool call has no name or no arguments")
    return {"name": call["name"], "arguments": arguments}


def _message(message: Mapping[str, Any]) -> Message:
    """A message in transformers' format from one in OpenAI's, whose content may be a list of parts."""
    role = message.get("role")
    converted = {**message, "role": _OPENAI_ROLES.get(str(role), role)}
    if isinstance(message.get("content"), list):
        converted["content"] = "".join(map(_text_part, _objects(message["content"], "content")))
    if message.get("tool_calls"):
        calls = _objects(message["tool_calls"], "tool call")
        converted["tool_calls"] = [
            {**call, "function": _function_call(call["function"])}
            if isinstance(call.get("function"), dict)
            else call
            for call in calls
        ]
    return converted


def _text_part(part: Mapping[str, Any]) -> str:
    if not isinstance(part.get("text"), str):
        raise UnusableRowError("a message is not text")
    return str(part["text"])


def _conversation(turns: list[Message], columns: Columns) -> Conversation:
    system, tools = columns.text("system", "system_prompt"), columns.value("tools")
    if isinstance(tools, str):
        tools = _parsed(tools, "tools are not JSON")
    if system and turns[:1] and turns[0].get("role") != "system":
        turns = [{"role": "system", "content": system}, *turns]
    return {"messages": turns, "tools": [*map(_tool, _objects(tools, "tools"))] if tools else None}


def _tool(tool: Mapping[str, Any]) -> Message:
    """A tool in the form that chat templates take, from its schema alone too."""
    return {"type": "function", "function": tool} if "function" not in tool and "name" in tool else dict(tool)


def _history(columns: Columns) -> Iterator[Message]:
    history = columns.value("history") or []
    for turn in history if isinstance(history, list) else [history]:
        if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(one, str) for one in turn)):
            raise UnusableRowError("history is not a list of pairs")
        yield from _turn(*turn)


def _turn(request: str, answer: str) -> list[Message]:
    return [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]


def _joined(separator: str, *parts: str) -> str:
    return separator.join(part for part in parts if part.strip())


def _objects(value: Any, name: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not value or any(not isinstance(one, dict) for one in value):
        raise UnusableRowError(f"no {name}" if not value else f"{name} is not a list of objects")
    return value


def _parsed(text: str, reason: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UnusableRowError(reason) from None
