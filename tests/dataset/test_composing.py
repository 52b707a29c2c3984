"""From a configuration to files that training reads."""

import errno
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub.dataset import ComposedDataset, DatasetConfig, compose_dataset, composing, read_records
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


def test_the_converter_is_detected_for_each_row(tmp_path: Path):
    rows = [
        {"instruction": "one?", "context": None, "response": "two"},
        {"instruction": "Who?", "context": "Ada wrote.", "response": "Ada"},
    ]
    write_rows(tmp_path / "a.jsonl", *rows)
    composed = compose(tmp_path, {"path": "a.jsonl"})
    assert {sample.record.messages[0].content for sample in composed.train} == {"one?", "Who?\n\nAda wrote."}
    assert composed.sources[0].converter == "auto: alpaca, dolly"


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


def test_a_table_without_a_header_is_not_quoted(tmp_path: Path):
    (tmp_path / "a.csv").write_text(f"cats,{'secret ' * 9}\ndogs,Ha.\n")
    with pytest.raises(DatasetError, match=r"Its columns are 'cats', a long text\.") as caught:
        compose(tmp_path, {"path": "a.csv"})
    assert "first line of the file" in str(caught.value.hint)
    assert "secret" not in str(caught.value)


def test_a_source_is_not_overwritten(tmp_path: Path):
    write_rows(tmp_path / "a.jsonl", pair(1))
    with pytest.raises(ConfigError, match="would be overwritten"):
        compose(tmp_path, {"path": "a.jsonl"}, train_path="./x/../a.jsonl")
    assert json.loads((tmp_path / "a.jsonl").read_text()) == pair(1)
    with pytest.raises(ConfigError, match="is a folder"):
        compose(tmp_path, {"path": "a.jsonl"}, train_path=".")


@pytest.mark.parametrize("val_path", ["./x/../train.jsonl", "train.card.json", "train.lengths.svg"])
def test_no_file_is_written_over_another(tmp_path: Path, val_path: str):
    write_rows(tmp_path / "a.jsonl", *map(pair, range(50)))
    with pytest.raises(ConfigError, match="Two files would be written to"):
        compose(tmp_path, {"path": "a.jsonl"}, val_path=val_path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_the_system_message_from_a_file(tmp_path: Path):
    write_rows(tmp_path / "a.jsonl", pair(1))
    (tmp_path / "system.md").write_text("be brief\n")
    (record,) = read_records(compose(tmp_path, {"path": "a.jsonl", "system_file": "system.md"}).train_path)
    assert record.messages[0].content == "be brief"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        compose(tmp_path, {"path": "a.jsonl", "system_file": "none.md"})


@pytest.mark.spec("2-F8", "2-F9")
def test_the_stages_run_in_order_and_leave_reports(tmp_path: Path):
    same = [pair(0)] * 10
    others = [pair(number) for number in range(1, 100)]
    write_rows(tmp_path / "a.jsonl", *same, *others, {"question": "What is &amp;?", "answer": "x"})
    composed = compose(
        tmp_path,
        {"path": "a.jsonl", "max_records": 80, "weight": 2},
        val_path="val.jsonl",
        cleaning={"html_entities": True},
        filters={"min_answer_characters": 2},
        split={"val_size": 10},
    )
    stages = [(stage.name, stage.given, stage.kept, dict(stage.dropped)) for stage in composed.stages]
    assert stages == [
        ("cleaning", 110, 110, {}),
        ("filters", 110, 109, {"answer too short": 1}),
        ("deduplication", 109, 100, {"exact duplicate": 9}),
        ("caps", 100, 80, {"over the source's maximum": 20}),
        ("weights", 70, 140, {}),
    ]
    assert composed.stages[0].changed == {"HTML entities": 1}
    train, val = read_records(composed.train_path), read_records(tmp_path / "val.jsonl")
    assert (len(train), len(val)) == (140, 10)
    asked = [{record.messages[0].content for record in part} for part in (train, val)]
    assert (len(asked[0]), len(asked[0] & asked[1])) == (70, 0)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path):
    write_rows(tmp_path / "a.jsonl", *map(pair, range(50)))
    files = [
        compose(tmp_path, {"path": "a.jsonl"}, train_path=f"{name}.jsonl", seed=seed).train_path.read_bytes()
        for name, seed in (("b", 1), ("c", 1), ("d", 2))
    ]
    assert files[0] == files[1]
    assert files[0] != files[2]
    assert sorted(files[0].splitlines()) == sorted(files[2].splitlines())


def test_the_data_card_lies_beside_the_records(tmp_path: Path):
    write_rows(tmp_path / "a.jsonl", *map(pair, range(50)), {"question": "secret"})
    source = {"path": "a.jsonl", "license": "mit"}
    composed = compose(tmp_path, source, val_path="val.jsonl", train_path="out/train.jsonl")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "train.card.json",
        "train.card.md",
        "train.jsonl",
        "train.lengths.svg",
    ]
    card = json.loads(composed.card_path.read_text())
    assert card["train"]["sha256"] == hashlib.sha256(composed.train_path.read_bytes()).hexdigest()
    assert (card["train"]["records"], card["val"]["records"]) == (48, 2)
    (read,) = card["sources"]
    assert (read["license"], read["rows"], read["dropped"]) == ("mit", 51, {"no completion": 1})
    assert "](train.lengths.svg)" in (tmp_path / "out" / "train.card.md").read_text()
    written = [file.read_bytes() for file in (tmp_path / "out").iterdir()]
    assert all(part not in content for content in written for part in (b"secret", str(tmp_path).encode()))


def test_nothing_left_changes_nothing(tmp_path: Path):
    write_rows(tmp_path / "a.jsonl", *map(pair, range(5)), {"question": "secret"})
    (tmp_path / "train.jsonl").write_text("before")
    with pytest.raises(DatasetError) as caught:
        compose(tmp_path, {"path": "a.jsonl"}, filters={"min_characters": 1000})
    assert caught.value.message == (
        "No record is left after filters: 6 rows were read; dropped: conversation too short 5, no completion 1."
    )
    assert (tmp_path / "train.jsonl").read_text() == "before"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl", "train.jsonl"]


def test_a_full_disk_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_rows(tmp_path / "a.jsonl", *map(pair, range(50)))
    (tmp_path / "train.jsonl").write_text("before")

    def full(record: object) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(composing, "_line", full)
    with pytest.raises(DatasetError, match="could not be written: No space left on device"):
        compose(tmp_path, {"path": "a.jsonl"}, val_path="val.jsonl")
    assert (tmp_path / "train.jsonl").read_text() == "before"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.jsonl", "train.jsonl"]


def test_tokens_are_counted_with_the_bases_tokenizer(tmp_path: Path):
    write_rows(tmp_path / "a.jsonl", pair(1), {"question": "one?", "answer": "two"})
    composed = compose(tmp_path, {"path": "a.jsonl"}, tokenizer="adapterhub-demo", filters={"max_tokens": 20})
    (sample,) = composed.train
    assert sample.tokens is not None
    assert 5 < sample.tokens <= 20
    assert composed.dropped == {"too many tokens": 1}


def test_the_same_source_twice_has_two_labels(tmp_path: Path):
    write_rows(tmp_path / "a.jsonl", *map(pair, range(50)))
    sources = [{"path": "a.jsonl", "split": f"train{part}"} for part in ("[:20]", "[20:]")]
    composed = compose(tmp_path, *sources)
    assert [(report.label, report.rows) for report in composed.sources] == [
        ("a.jsonl", 20),
        ("a.jsonl (2)", 30),
    ]


def test_progress_names_the_stages(tmp_path: Path):
    write_rows(tmp_path / "a.jsonl", *map(pair, range(450)))
    seen: list[tuple[str, int, int | None]] = []
    config = DatasetConfig.parse({"sources": [{"path": "a.jsonl"}]}, origin="test").in_folder(tmp_path)
    compose_dataset(config, progress=lambda *report: seen.append(report))
    assert seen[:3] == [
        ("reading a.jsonl", 200, None),
        ("reading a.jsonl", 400, None),
        ("reading a.jsonl", 450, 450),
    ]
    assert ("filters", 200, 450) in seen
    assert seen[-1] == ("weights", 450, 450)
