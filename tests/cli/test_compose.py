"""`adapterhub compose-dataset`: the recipe's flags, what is printed, and errors that change nothing."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from adapterhub.dataset import DatasetConfig, SourceOptions, read_records

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(tmp_path: Path) -> Path:
    for name in ("dataset.yaml", "jokes.csv"):
        shutil.copy(EXAMPLES / name, tmp_path)
    return tmp_path / "dataset.yaml"


@pytest.mark.spec("2-F7", "2-F9", "2-F10", "2-F13")
def test_the_example_makes_the_files_that_it_names(run, example: Path):
    done = run("compose-dataset", example)
    folder = example.parent / "composed"
    assert (done.code, done.out) == (0, f"{folder / 'train.jsonl'}\n{folder / 'val.jsonl'}\n")
    for line in (
        "train.jsonl: 28 records",
        "val.jsonl: 4 records",
        "dropped: 3  rating too low",
        "dropped: 1  exact duplicate",
        "dropped: 1  near duplicate",
    ):
        assert line in done.err
    train = read_records(folder / "train.jsonl")
    answers = [record.messages[-1].content for record in (*train, *read_records(folder / "val.jsonl"))]
    assert (
        'A man tells his friend: "My cat can say her own name." "Really? What is she called?" "Meow."'
        in answers
    )
    assert "Why do melons have big weddings?\nBecause they cantaloupe." in answers
    assert {record.messages[0].content for record in train} == {"You tell short, funny jokes."}


def test_the_recipes_flags_take_paths_from_the_working_folder(
    run, example: Path, monkeypatch: pytest.MonkeyPatch
):
    (example.parent / "here").mkdir()
    monkeypatch.chdir(example.parent / "here")
    done = run(
        "compose-dataset", example, "--train_path", "a.jsonl", "--val-path", "b.jsonl", "--seed", 3, "--json"
    )
    assert (done.json["seed"], done.json["train"]["file"]) == (3, "a.jsonl")
    names = sorted(path.name for path in (example.parent / "here").iterdir())
    assert names == ["a.card.json", "a.card.md", "a.jsonl", "a.lengths.svg", "b.jsonl"]
    assert not (example.parent / "composed").exists()


def test_bad_configurations_exit_with_one_message(run, example: Path):
    example.write_text("sources: [{path: none.jsonl, colour: red}]\nseed: -1\n")
    done = run("compose-dataset", example)
    assert done.code == 1
    assert "sources.0.colour" in done.err
    assert "seed" in done.err
    example.write_text("sources: [{path: none.jsonl}]")
    done = run("compose-dataset", example)
    assert (done.code, done.out) == (1, "")
    assert "There is no file" in done.err
    assert sorted(path.name for path in example.parent.iterdir()) == ["dataset.yaml", "jokes.csv"]


def test_the_example_shows_every_field_and_its_default():
    text = (EXAMPLES / "dataset.yaml").read_text(encoding="utf-8")
    every = yaml.safe_load(re.sub(r"^( +)# (\w+:)", r"\1\2", text, flags=re.MULTILINE))
    short = yaml.safe_load(text)
    assert DatasetConfig.model_validate(every) == DatasetConfig.model_validate(short)
    assert every.keys() == DatasetConfig.model_fields.keys()
    assert every["sources"][0].keys() == SourceOptions.model_fields.keys()
    for name in ("cleaning", "filters", "deduplication", "split"):
        assert every[name].keys() == DatasetConfig.model_fields[name].annotation.model_fields.keys()
