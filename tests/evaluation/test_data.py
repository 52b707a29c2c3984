"""Held-out records and prompts."""

import hashlib
import json
from pathlib import Path

import pytest

from adapterhub.errors import DatasetError, InvalidRequestError
from adapterhub.evaluation import EvaluationPrompt, read_data

SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}
ANSWER, THANKS = {"role": "assistant", "content": "4"}, {"role": "user", "content": "Thanks"}


def lines(path: Path, *records: object) -> Path:
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    return path


def test_the_prompts_of_data_are_its_conversations_up_to_the_last_answer(tmp_path: Path):
    tools = [{"type": "function", "function": {"name": "add"}}]
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}
    path = lines(
        tmp_path / "held.jsonl",
        {"messages": [SYSTEM, USER, ANSWER]},
        {"messages": [USER, ANSWER, THANKS, {"role": "assistant", "content": "Welcome"}]},
        {"messages": [USER, call], "tools": tools},
        {"messages": [SYSTEM, {"role": "assistant", "content": "Hello"}]},  # nothing was asked
    )
    read = read_data(path)
    assert len(read.records) == 4
    assert read.prompts == (
        EvaluationPrompt((SYSTEM, USER), "4"),
        EvaluationPrompt((USER, ANSWER, THANKS), "Welcome"),
        EvaluationPrompt((USER,), None, tuple(tools)),
    )
    assert [(one.name, one.sha256) for one in read.files] == [
        ("held.jsonl", hashlib.sha256(path.read_bytes()).hexdigest())
    ]


def test_a_text_file_has_a_prompt_in_each_line(tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("\ufeffOne\n\n  Два \r\n", encoding="utf-8")
    read = read_data(prompts=tmp_path / "prompts.txt")
    assert [prompt.text for prompt in read.prompts] == ["One", "Два"]
    assert read.records == ()


def test_prompts_in_json_lines_have_references(tmp_path: Path):
    path = lines(
        tmp_path / "prompts.jsonl", {"prompt": "2 + 2?", "reference": "4"}, {"messages": [SYSTEM, USER]}
    )
    assert read_data(prompts=path).prompts == (
        EvaluationPrompt((USER,), "4"),
        EvaluationPrompt((SYSTEM, USER)),
    )


def test_prompts_win_over_those_of_the_data_and_both_have_a_limit(tmp_path: Path):
    data = lines(tmp_path / "held.jsonl", *[{"messages": [USER, ANSWER]}] * 5)
    (tmp_path / "prompts.txt").write_text("a\nb\nc\n")
    read = read_data(data, tmp_path / "prompts.txt", max_records=3, max_prompts=2)
    assert (len(read.records), [one.text for one in read.prompts]) == (3, ["a", "b"])
    assert len(read_data(data, max_prompts=4).prompts) == 4


def test_nothing_to_compare_on_is_an_error():
    with pytest.raises(InvalidRequestError, match="nothing to compare on"):
        read_data()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "hold no prompt"),
        ('{"prompt": "a", "messages": [{"role": "user", "content": "b"}]}', "give prompt or messages"),
        ('{"prompt": ""}', "line 1"),
        ('{"prompt": "secret", "refrence": "b"}', "refrence"),
        ('{"messages": [{"role": "user", "content": 3}]}', "line 1"),
        ("\nsecret", "line 2: not JSON"),
    ],
)
def test_prompts_that_are_not_valid_are_named_by_line_without_their_text(
    tmp_path: Path, content: str, message: str
):
    (tmp_path / "prompts.jsonl").write_text(content)
    with pytest.raises(DatasetError, match=message) as raised:
        read_data(prompts=tmp_path / "prompts.jsonl")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_prompts_that_cannot_be_read_are_an_error(tmp_path: Path, content: bytes | None):
    if content:
        (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(DatasetError, match="could not be read"):
        read_data(prompts=tmp_path / "prompts.txt")
