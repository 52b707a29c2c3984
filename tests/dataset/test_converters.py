"""From rows of every format to conversations; rows that are none have a reason, which never quotes them."""

import sys
from pathlib import Path
from typing import Any

import pytest

from adapterhub.dataset import SourceOptions
from adapterhub.dataset.columns import Columns, UnusableRowError
from adapterhub.dataset.converters import CONVERTERS, detect_converter
from adapterhub.dataset.own_converter import load_own_converter
from adapterhub.errors import ConfigError, DatasetError


def convert(name: str, row: dict[str, Any], number: int = 1, **options: Any) -> list[tuple[str, Any]]:
    columns = Columns(row, options.get("mapping", {}), options.get("prompts", ()), number)
    converted = CONVERTERS[name](columns)["messages"]
    return [(message["role"], message.get("content") or message.get("tool_calls")) for message in converted]


TURN = [("user", "one?"), ("assistant", "two")]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
ROW_MESSAGES = [{"role": "user", "content": "one?"}, {"role": "assistant", "content": "two"}]
ROWS: dict[str, tuple[str, dict[str, Any], list[tuple[str, Any]]]] = {
    "messages": (
        "messages",
        {"messages": ROW_MESSAGES},
        TURN,
    ),
    "messages in parts": (
        "messages",
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "?"}]},
                {"role": "assistant", "content": "two"},
            ]
        },
        TURN,
    ),
    "OpenAI's developer": (
        "messages",
        {"messages": [{"role": "developer", "content": "be brief"}, *ROW_MESSAGES]},
        [("system", "be brief"), *TURN],
    ),
    "messages as lists": (
        "messages",
        {"messages": {"role": ["user", "assistant"], "content": ["one?", "two"]}},
        TURN,
    ),
    "OpenAI's tool call": (
        "messages",
        {
            "messages": [
                {"role": "user", "content": "one?"},
                {
                    "role": "assistant",
                    "tool_calls": [
                        {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
                    ],
                },
            ]
        },
        [("user", "one?"), ("assistant", [CALL])],
    ),
    "sharegpt": (
        "sharegpt",
        {
            "conversations": [{"from": "human", "value": "one?"}, {"from": "gpt", "value": "two"}],
            "system": "be brief",
        },
        [("system", "be brief"), *TURN],
    ),
    "sharegpt with tools": (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "one?"},
                {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
                {"from": "observation", "value": "2"},
                {"from": "gpt", "value": "two"},
            ],
        },
        [("user", "one?"), ("assistant", [CALL]), ("tool", "2"), ("assistant", "two")],
    ),
    "alpaca": (
        "alpaca",
        {"instruction": "Add.", "input": "1 and 1", "output": "two"},
        [("user", "Add.\n1 and 1"), ("assistant", "two")],
    ),
    "alpaca without input": ("alpaca", {"instruction": "one?", "input": "", "output": "two"}, TURN),
    "alpaca with history": (
        "alpaca",
        {"instruction": "one?", "output": "two", "history": [["zero?", "one"]]},
        [("user", "zero?"), ("assistant", "one"), *TURN],
    ),
    "dolly": (
        "dolly",
        {"instruction": "Who?", "context": "Ada wrote.", "response": "Ada", "category": "closed_qa"},
        [("user", "Who?\n\nAda wrote."), ("assistant", "Ada")],
    ),
    "reasoning": (
        "reasoning",
        {"instruction": "one?", "reasoning": "I add.", "output": "two"},
        [("user", "one?"), ("assistant", "<think>\nI add.\n</think>\n\ntwo")],
    ),
    "prompt and text": ("prompt_completion", {"prompt": "one?", "text": "two"}, TURN),
    "prompt and completion": ("prompt_completion", {"prompt": "one?", "completion": "two"}, TURN),
    "prompt and completion as messages": (
        "prompt_completion",
        {
            "prompt": [{"role": "user", "content": "one?"}],
            "completion": [{"role": "assistant", "content": "two"}],
        },
        TURN,
    ),
    "question and answer": ("prompt_completion", {"question": "one?", "answer": "two"}, TURN),
    "text": ("text", {"text": "two"}, [("assistant", "two")]),
}


@pytest.mark.parametrize(("converter", "row", "wanted"), ROWS.values(), ids=ROWS)
@pytest.mark.spec("2-F7", "4-D1", "4-F2")
def test_rows_become_conversations_and_are_recognised(
    converter: str, row: dict[str, Any], wanted: list[tuple[str, Any]]
):
    assert convert(converter, row) == wanted
    assert detect_converter(Columns(row, {})) == converter


def test_a_mapping_names_other_columns_and_places_inside_them():
    row = {"task": "one?", "instances": [{"input": "", "output": "two"}]}
    mapping = {"instruction": "task", "output": "instances.0.output"}
    assert convert("alpaca", row, mapping=mapping) == TURN
    assert detect_converter(Columns(row, mapping)) == "alpaca"
    turns = {"conversations": [{"who": "human", "said": "one?"}, {"who": "gpt", "said": "two"}]}
    assert convert("sharegpt", turns, mapping={"from": "who", "value": "said"}) == TURN


@pytest.mark.spec("2-F11")
def test_prompts_are_used_in_turn_or_by_theme():
    row = {"text": "two", "theme": "cats"}
    prompts = ["A joke.", "A joke on {theme}."]
    assert [convert("text", row, number, prompts=prompts)[0][1] for number in (1, 2, 3)] == [
        "A joke.",
        "A joke on cats.",
        "A joke.",
    ]
    by_theme = {"cats": "About a cat.", "*": "About {theme}."}
    assert convert("text", row, prompts=by_theme)[0] == ("user", "About a cat.")
    assert convert("text", {**row, "theme": "{text}"}, prompts=by_theme)[0] == ("user", "About {text}.")


def test_a_theme_without_a_prompt():
    with pytest.raises(UnusableRowError, match="no prompt for its theme"):
        convert("text", {"text": "two", "theme": "secret"}, prompts={"cats": "About a cat."})


def test_tools_are_written_as_chat_templates_take_them():
    schema = {"name": "add", "parameters": {}}
    for tools in (
        [schema],
        '[{"name": "add", "parameters": {}}]',
        [{"type": "function", "function": schema}],
    ):
        row = {"conversations": [{"from": "gpt", "value": "two"}], "tools": tools}
        assert CONVERTERS["sharegpt"](Columns(row, {}))["tools"] == [{"type": "function", "function": schema}]


UNUSABLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "no answer": ("alpaca", {"instruction": "secret", "output": " "}, "no output"),
    "unknown role": ("sharegpt", {"conversations": [{"from": "secret", "value": "secret"}]}, "unknown role"),
    "not JSON": (
        "sharegpt",
        {"conversations": [{"from": "function_call", "value": "secret"}]},
        "a tool call is not JSON",
    ),
    "an image": (
        "messages",
        {"messages": [{"role": "user", "content": [{"image": "secret"}]}]},
        "a message is not text",
    ),
    "a list of texts": ("messages", {"messages": ["secret"]}, "messages is not a list of objects"),
    "messages as no lists": ("messages", {"messages": {"role": None}}, "messages is not a list of objects"),
    "a number as history": (
        "alpaca",
        {"instruction": "one?", "output": "two", "history": 5},
        "history is not a list of pairs",
    ),
    "no prompt": ("prompt_completion", {"text": "secret"}, "no prompt"),
    "a call of nothing": (
        "messages",
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}]},
        "a tool call has no name or no arguments",
    ),
    "a number as message": (
        "sharegpt",
        {"conversations": [{"from": "gpt", "value": 5}]},
        "a message is not text",
    ),
    "tools that are no JSON": (
        "sharegpt",
        {"conversations": [{"from": "gpt", "value": "two"}], "tools": "secret"},
        "tools are not JSON",
    ),
    "no text": ("text", {"text": None}, "no text"),
    "not a number": ("text", {"text": float("nan")}, "no text"),
    "an object as text": ("text", {"text": {"secret": 1}}, "text is not text"),
}


@pytest.mark.parametrize(("converter", "row", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_rows_that_are_no_conversation_have_a_reason(converter: str, row: dict[str, Any], reason: str):
    with pytest.raises(UnusableRowError) as caught:
        convert(converter, row)
    assert str(caught.value) == reason


OWN = """
def convert(row):
    if row["a"] == "skip":
        return None
    return [{"role": "user", "content": row["a"]}, {"role": "assistant", "content": row["b"]}]
"""


def test_a_converter_of_ones_own(tmp_path: Path):
    (tmp_path / "mine.py").write_text(OWN)
    for name in ("mine.convert", "mine:convert", "mine.py:convert"):
        source = SourceOptions(path="a.jsonl", converter=name).in_folder(tmp_path)
        converter = load_own_converter(source.converter)
        assert converter(Columns({"a": "one?", "b": "two"}, {}))["messages"][1]["content"] == "two"
    with pytest.raises(UnusableRowError, match="left out by the converter"):
        converter(Columns({"a": "skip"}, {}))
    with pytest.raises(DatasetError, match=r"raised KeyError on row 7\.") as caught:
        converter(Columns({"a": "secret"}, {}, (), 7))
    assert "secret" not in str(caught.value)


def test_a_converter_in_a_file_may_use_dataclasses(tmp_path: Path):
    code = """from __future__ import annotations
from dataclasses import dataclass

@dataclass
class Row:
    said: str

def convert(row: dict) -> list:
    return [{"role": "assistant", "content": Row(row["a"]).said}]
"""
    (tmp_path / "json.py").write_text(code)  # of the same name as a module of Python's
    converter = load_own_converter(f"{tmp_path / 'json.py'}:convert")
    assert converter(Columns({"a": "two"}, {}))["messages"][0]["content"] == "two"
    assert "loads" in vars(sys.modules["json"])


@pytest.mark.parametrize("name", ["json.__name__", "nowhere.convert", "json.nothing", "missing.py:convert"])
def test_a_converter_that_is_not_there(name: str):
    with pytest.raises(ConfigError, match="could not be imported"):
        load_own_converter(name)
