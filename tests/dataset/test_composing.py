"""From a configuration to files that training reads."""

import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub.dataset import ComposedDataset, DatasetConfig, compose_dataset, read_records
from adapterhub.errors import ConfigError, DatasetError


def compose(folder: Path, *sources: dict[str, Any], **more: Any) -> ComposedDataset:
    return compose_dataset(DatasetConfig.parse({"sources": sources, **more}, origin="test").in_folder(folder))


def write_rows(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")


def pair(number: int) -> dict[str, Any]:
    """A question and its answer, like no other."""
    words = [f"{'abcdefghij'[int(digit)]}{place}" for place, digit in enumerate(f"{number:04}")]
    return {"question": f"What is {' '.join(words)}?", "answer": f"It is {' '.join(reversed(words))}."}


def test_sources_of_several_formats_make_one_file(tmp_path: Path):
    write_rows(tmp_path / "a.jsonl", pair(1), {"question": "secret"})
    (tmp_path / "b.csv").write_text("joke,score\nHa.,4.5\n")
    composed = compose(
        tmp_path,
        {"path": "a.jsonl", "system": "be brief"},
        {"path": "b.csv", "mapping": {"text": "joke"}, "prompts": ["A joke."]},
    )
    said = {
        tuple(message.content for message in record.messages) for record in read_records(composed.train_path)
    }
    assert said == {("be brief", *pair(1).values()), ("A joke.", "Ha.")}
    assert [(report.rows, dict(report.dropped)) for report in composed.sources] == [
        (2, {"no completion": 1}),
        (1, {}),
    ]


def test_what_is_written_is_what_was_read(tmp_path: Path):
    tool = {"type": "function", "function": {"name": "add", "parameters": {"default": None}}}
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": None}}}
    record = {
        "messages": [
            {"role": "user", "content": "one? \N{GRINNING FACE}", "name": "Ada"},
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": "2"},
            {"role": "assistant", "content": "two"},
        ],
        "tools": [tool],
    }
    write_rows(tmp_path / "a.jsonl", record)
    composed = compose(tmp_path, {"path": "a.jsonl"})
    assert json.loads(composed.train_path.read_text("utf-8")) == record


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (["user"], "no assistant message"),
        (["assistant", "user", "assistant"], "the first message is not the user's"),
        (["user", "system", "assistant"], "a system message is not the first"),
        (["user", "user", "assistant"], "user and assistant do not alternate"),
        (["other", "assistant"], r"messages\.role: Input should be"),
        (["user \ud800", "assistant"], "not valid Unicode"),
    ],
)
def test_conversations_that_training_could_not_use(tmp_path: Path, messages: list[str], reason: str):
    turns = [{"role": message.split()[0], "content": message} for message in messages]
    write_rows(tmp_path / "a.jsonl", {"messages": turns})
    with pytest.raises(DatasetError, match=rf"No row of 'a\.jsonl' .*{reason}.* \(1 of 1 rows\)"):
        compose(tmp_path, {"path": "a.jsonl"})
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl"]


def test_an_empty_source_and_unknown_columns(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(DatasetError, match=r"'a\.jsonl' holds no rows"):
        compose(tmp_path, {"path": "a.jsonl"})
    write_rows(tmp_path / "b.jsonl", {"colour": "secret"})
    with pytest.raises(DatasetError, match=r"Its columns are 'colour'\.") as caught:
        compose(tmp_path, {"path": "b.jsonl"})
    assert "secret" not in str(caught.value)


def test_a_source_is_not_overwritten(tmp_path: Path):
    write_rows(tmp_path / "a.jsonl", pair(1))
    with pytest.raises(ConfigError, match="would be overwritten"):
        compose(tmp_path, {"path": "a.jsonl"}, train_path="./x/../a.jsonl")
    assert json.loads((tmp_path / "a.jsonl").read_text()) == pair(1)


def test_the_system_message_from_a_file(tmp_path: Path):
    write_rows(tmp_path / "a.jsonl", pair(1))
    (tmp_path / "system.md").write_text("be brief\n")
    (record,) = read_records(compose(tmp_path, {"path": "a.jsonl", "system_file": "system.md"}).train_path)
    assert record.messages[0].content == "be brief"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        compose(tmp_path, {"path": "a.jsonl", "system_file": "none.md"})
