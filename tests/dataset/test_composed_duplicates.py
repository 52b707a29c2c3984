"""Duplicates from the sources' rows to the files that are written."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.dataset import DatasetConfig, compose_dataset
from adapterhub.dataset.cleaning import CleaningOptions, clean
from adapterhub.dataset.near_duplicates import DeduplicationOptions, deduplicate, duplicate_groups, jaccard
from adapterhub.dataset.records import Record
from adapterhub.errors import DatasetError
from tests.dataset.samples import sample, texts
from tests.dataset.test_near_duplicates import SYSTEM, text


def write(path: Path, pairs: list[tuple[str, str]]) -> Path:
    roles = ("system", "user", "assistant")
    conversations = ([SYSTEM, *pair] for pair in pairs)
    records = (
        {"messages": [{"role": role, "content": said} for role, said in zip(roles, one, strict=True)]}
        for one in conversations
    )
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def compose(path: Path, **more: Any) -> tuple[list[tuple[str, str]], list[tuple[str, str]], dict[str, int]]:
    """The training and the held-out pairs, and what was dropped."""
    config = DatasetConfig.model_validate(
        {
            "sources": [{"path": str(path)}],
            "train_path": str(path.with_name("train.jsonl")),
            "val_path": str(path.with_name("val.jsonl")),
            **more,
        }
    )
    composed = compose_dataset(config)
    train, val = (
        [
            tuple(message["content"] for message in json.loads(line)["messages"][1:])
            for line in file.read_text().splitlines()
        ]
        for file in (config.train_path, config.val_path)
        if file is not None
    )
    return train, val, dict(composed.dropped)


SUMS = [(f"What is {a} + {b}?", str(a + b)) for a in range(1, 21) for b in range(1, 21)]
LONG = [("Tell me a story.", text(80, seed)) for seed in range(40)]
EDITED = [(question, answer.replace(answer.split()[40], "edited", 1)) for question, answer in LONG]


def test_distinct_chats_survive_and_near_duplicates_do_not(tmp_path: Path):
    path = write(tmp_path / "data.jsonl", [*SUMS, *LONG, *EDITED, *SUMS[:30]])
    train, val, dropped = compose(path, split={"val_size": 0.1})
    assert dropped == {"exact duplicate": 30, "near duplicate": 40}
    assert sorted([*train, *val]) == sorted([*SUMS, *LONG])
    assert len(val) == 44


JOKES = [f"Why {text(6, seed)}? Because {text(4, seed + 100)}." for seed in range(30)]


@pytest.mark.parametrize(("deduplication", "left"), [({}, 31), ({"exact": False, "near": False}, 94)])
@pytest.mark.spec("2-F9")
def test_a_prompt_that_is_used_in_turn_hides_no_duplicate(
    tmp_path: Path, deduplication: dict[str, bool], left: int
):
    """Each text comes three times and is asked for by each of two prompts."""
    source = tmp_path / "jokes.csv"
    source.write_text("\n".join(["text", *JOKES, "an odd one", *JOKES, *JOKES, *JOKES[:3]]))
    prompts = ["Tell me a joke.", "Please tell me something that is really very funny."]
    train, val, dropped = compose(
        source,
        sources=[{"path": str(source), "prompts": prompts}],
        deduplication=deduplication,
        split={"val_size": 12},
    )
    assert len(train) + len(val) == left
    assert sum(dropped.values()) == 94 - left
    assert val
    assert not {answer for *_, answer in train} & {answer for *_, answer in val}


def test_a_prompt_that_says_what_is_asked_for_tells_answers_apart(tmp_path: Path):
    source = tmp_path / "facts.csv"
    source.write_text("theme,text\ncats,yes\ndogs,yes\nstones,no\n")
    for prompts in (["Is it one of the {theme}?"], {"cats": "Do cats eat?", "*": "Do {theme} eat?"}):
        config = DatasetConfig.parse(
            {
                "sources": [{"path": str(source), "prompts": prompts}],
                "train_path": str(tmp_path / "train.jsonl"),
            },
            origin="test",
        )
        assert len(compose_dataset(config).train) == 3


def test_duplicates_that_are_kept_are_on_one_side(tmp_path: Path):
    path = write(tmp_path / "data.jsonl", [*SUMS, *LONG * 10, *EDITED])
    train, val, dropped = compose(
        path, split={"val_size": 100}, deduplication={"exact": False, "near": False}
    )
    assert dropped == {}
    assert (len(train), len(val)) == (400 + 440 - 100, 100)
    assert not set(train) & set(val)
    words = [[frozenset(answer.split()) for _, answer in side if len(answer) > 9] for side in (train, val)]
    assert all(words)
    assert max(jaccard(one, other) for one in words[0] for other in words[1]) < 0.2


@pytest.mark.parametrize(
    ("removed", "searches"),
    [({}, 0), ({"threshold": 0.7}, 0), ({"threshold": 0.9}, 1), ({"near": False}, 1)],
)
def test_the_split_searches_only_for_duplicates_that_were_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: dict[str, Any], searches: int
):
    seen: list[int] = []

    def groups(records: list[Record], *settings: Any) -> list[int]:
        seen.append(len(records))
        return duplicate_groups(records, *settings)

    monkeypatch.setattr("adapterhub.dataset.splitting.duplicate_groups", groups)
    compose(write(tmp_path / "data.jsonl", LONG), deduplication=removed)
    assert seen == [40] * searches


def test_weights_repeat_on_the_training_side_only(tmp_path: Path):
    path = write(tmp_path / "data.jsonl", SUMS)
    train, val, _ = compose(path, sources=[{"path": str(path), "weight": 3}], split={"val_size": 40})
    assert (len(train), len(set(train)), len(val), len(set(val))) == (1080, 360, 40, 40)
    assert not set(train) & set(val)


def test_a_split_that_cannot_be_made_writes_nothing(tmp_path: Path):
    path = write(tmp_path / "data.jsonl", SUMS[:1] * 20)
    with pytest.raises(DatasetError, match="near duplicates stay on one side"):
        compose(path, deduplication={"exact": False, "near": False})
    assert [file.name for file in tmp_path.iterdir()] == ["data.jsonl"]


@given(st.text(), st.text(min_size=1))
def test_cleaning_twice_changes_nothing_more(question: str, answer: str):
    once = clean([sample(question, answer)], CleaningOptions()).kept
    assert clean(once, CleaningOptions()).kept == once


@given(st.lists(st.tuples(st.text(max_size=30), st.text(min_size=1, max_size=30)), max_size=8))
def test_any_text_can_be_compared(pairs: list[tuple[str, str]]):
    samples = [sample(*pair) for pair in pairs]
    found = deduplicate([*samples, *samples], DeduplicationOptions())
    assert found.dropped["exact duplicate"] >= len(samples)
    assert set(texts(found.kept)) <= {answer for _, answer in pairs}
