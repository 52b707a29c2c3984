"""Verifies a derived template: what Ollama renders with it is what the prompt format renders, text by text."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from adapterhub.export.ollama.conversations import Conversation
from adapterhub.export.ollama.deriving import OllamaTemplate
from adapterhub.export.ollama.go_syntax import GoTemplateError, parse
from adapterhub.export.ollama.go_template import render_go_template
from adapterhub.export.ollama.probing import not_expressible
from adapterhub.export.ollama.source import PromptSource

_SHOWN = 60
_SYSTEMS = (None, "You answer in one word.", 'Rules:\n1. Say "{{ yes }}".\n2. {% never %} 你好 🙂')
_TURNS = (
    ("user", "Name a colour & a number <now>."),
    ("assistant", 'Red,\n"7"'),
    ("user", "{{ .Content }} {% raw %} \\n `x` 'y' [INST] </s>"),
    ("assistant", 'Naïve — ¿qué?\n\n```json\n{"a": 1}\n```'),
    ("user", "1"),
    ("assistant", "один 👩\u200d🚀"),
)
_LONG = " ".join(["Is this the end?"] * 2000)


def verify_template(source: PromptSource, template: OllamaTemplate) -> int:
    """Compares prompts of conversations with system messages, tools, calls, reasoning and begun answers.

    Args:
        source: The prompt format.
        template: The template.

    Returns:
        The number of conversations; those that the prompt format refuses are not counted.

    Raises:
        ExportError: A prompt differs.
    """
    parsed = parse(template.text)
    compared = 0
    for conversation in conversations(template):
        expected = source.try_render(conversation.collated())
        if expected is None:
            continue
        try:
            written = render_go_template(parsed, conversation.values())
        except GoTemplateError as error:
            raise not_expressible(f"the derived template fails: {error}") from error
        if written != expected:
            raise not_expressible(_difference(written, expected))
        compared += 1
    return compared


def conversations(template: OllamaTemplate) -> Iterator[Conversation]:
    """The conversations that are compared."""
    systems = _SYSTEMS if "system" in template.roles else _SYSTEMS[:1]
    tools = ((), _TOOLS) if template.has_tools else ((),)
    cases = [(*case, None) for case in product(systems, tools)]
    if "IsThinkSet" in template.text:
        cases += product(systems[:2], tools, (True, False))
    for system, offered, think in cases:
        begun = [] if system is None else [{"role": "system", "content": system}]
        for count in range(1, len(_TURNS) + 1):
            turns = [{"role": role, "content": content} for role, content in _TURNS[:count]]
            yield Conversation((*begun, *turns), offered, think)
        yield Conversation((*begun, _user("a"), _user("b\nc")), offered, think)
        if "system" in template.roles:
            later = {"role": "system", "content": "Now in French."}
            yield Conversation((*begun, later, _user("a")), offered, think)
        if template.has_tools:
            for messages in _tool_conversations():
                yield Conversation((*begun, *messages), offered, think)
    # A format may leave out early turns, or cut contents.
    turns = [{"role": role, "content": content} for role, content in _TURNS * 4]
    yield Conversation((*turns, _user(_LONG)))


def _tool_conversations() -> Iterator[tuple[dict[str, Any], ...]]:
    one, two = _answer("", "get_weather"), _answer("", "get_weather", "convert")
    said, thought = _answer("I look.", "convert"), {**one, "reasoning_content": "Which city?\nOslo."}
    result, other = (
        _result("get_weather", '{"temperature": "-3 °C", "ok": true}'),
        _result("convert", "26.6 & <sun>"),
    )
    done = {"role": "assistant", "content": "Cold."}
    yield (_user("a"), one, result)
    yield (_user("a"), two, result, other)
    yield (_user("a"), one, result, done, _user("b"))
    yield (_user("a"), one, result, two, result, other, done, _user("b"), said, other)
    yield (_user("a"), said, other)
    yield (_user("a"), said, other, {"role": "assistant", "content": "It is"})
    yield (_user("a"), thought, result)
    yield (_user("a"), thought, result, {**done, "reasoning_content": "Minus three."}, _user("b"))
    yield (_user("a"), {**done, "reasoning_content": "Easy."}, _user("b"), thought, result)


def _user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _answer(content: str, *names: str) -> dict[str, Any]:
    arguments = {
        "city": 'O"s\\lo',
        "days": [1, 2.5, None],
        "html": "<b>&amp;</b>\n",
        "options": {"exact": True, "none": {}},
    }
    calls = [
        {"id": f"call0000{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for index, name in enumerate(names)
    ]
    return {"role": "assistant", "content": content, "tool_calls": calls}


def _result(name: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "name": name, "content": content, "tool_call_id": "call00000"}


_TOOLS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'The weather of a city: "now" <and> later, in °C.',
            "parameters": {
                "type": "object",
                "required": ["city"],
                "properties": {
                    "city": {"type": "string", "description": "The city's name"},
                    "days": {"type": ["array", "null"], "items": {"type": "number"}},
                    "unit": {"type": "string", "enum": ["C", "F"]},
                },
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "now",
            "description": "The time.",
            "parameters": {"type": "object", "properties": {}},
        },
    },
)


def _difference(written: str, expected: str) -> str:
    place = next(
        (index for index, (one, other) in enumerate(zip(written, expected, strict=False)) if one != other),
        min(len(written), len(expected)),
    )
    start = max(0, place - _SHOWN // 2)
    return (
        f"in a test conversation it gives {expected[start : place + _SHOWN]!r}, "
        f"the derived template {written[start : place + _SHOWN]!r}"
    )
