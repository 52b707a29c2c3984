"""The configuration of a dataset: paths, aliases, and errors that name every wrong field."""

import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub.dataset import DatasetConfig
from adapterhub.errors import ConfigError


def test_paths_are_relative_to_the_configuration_file(tmp_path: Path):
    (tmp_path / "dataset.yaml").write_text(
        "sources: [{path: a.jsonl}]\ntrain_path: out/train.jsonl\nval_path: /val.jsonl"
    )
    config = DatasetConfig.load(tmp_path / "dataset.yaml")
    assert config.train_path == tmp_path / "out" / "train.jsonl"
    assert config.val_path == Path("/val.jsonl")


def test_json_and_fields_in_place_of_the_files(tmp_path: Path):
    content = {"sources": [{"path": "user/data", "subset": "ru"}], "seed": 1}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    config = DatasetConfig.load(tmp_path / "dataset.json", seed=2)
    (source,) = config.sources
    assert (source.path, source.subset, source.label) == ("user/data", "ru", "user/data/ru")
    assert config.seed == 2


IMPRUVER = """
output_dir: ./models/phi
train_path: ./train.jsonl
val_path: ./val.jsonl
datasets:
  - name: user/data
    converter: impruver.data.converters.instruction_to_messages
    split: train[:1000]
    mapping: {instruction: task, output: solution}
    add_global_bos: false
    max_tokens_count: 500
  - name: other/data
    converter: impruver.conversations_to_messages
model: {class: transformers.AutoModelForCausalLM, name: microsoft/phi, load_in_4bit: true}
lora: {r: 8}
tokenizer: {class: transformers.AutoTokenizer, name: user/tokenizer, max_tokens_count: 1500}
trainer: {num_train_epochs: 3}
"""


def test_a_configuration_of_impruver(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_text(IMPRUVER)
    config = DatasetConfig.load(path)
    first, second = config.sources
    assert (first.path, first.converter, first.split) == ("user/data", "alpaca", "train[:1000]")
    assert (first.mapping, second.converter) == ({"instruction": "task", "output": "solution"}, "sharegpt")
    assert (config.train_path, config.val_path) == (tmp_path / "train.jsonl", tmp_path / "val.jsonl")
    assert (config.tokenizer, config.filters.max_tokens) == ("user/tokenizer", 500)
    path.write_text(IMPRUVER.replace("split:", "splits:"))
    with pytest.raises(ConfigError, match=r"sources\.0\.splits: Extra inputs"):
        DatasetConfig.load(path)
    path.write_text("datasets: 5")
    with pytest.raises(ConfigError, match="sources: Input should be a valid list"):
        DatasetConfig.load(path)


def test_what_does_not_fit_together(tmp_path: Path):
    for fields, reason in (
        ({"val_path": "train.jsonl"}, "are the same file"),
        ({"filters": {"max_tokens": 5}}, "need a tokenizer"),
        ({"split": {"val_size": 5}}, "split needs a val_path"),
    ):
        with pytest.raises(ConfigError, match=reason):
            DatasetConfig.parse({"sources": [{"path": "a.jsonl"}], **fields}, origin="test")
    for source, reason in (
        ({"converter": "alpacca"}, "is none of auto, messages, sharegpt, alpaca"),
        ({"mapping": {"outputs": "a"}}, "no converter reads outputs"),
        ({"split": "a+b"}, "one slice"),
        ({"system": "a", "system_file": "b"}, "not both"),
        ({"converter": "alpaca", "prompts": ["a"]}, "prompts are for the converters"),
        ({"converter": "mine.convert", "mapping": {"text": "a"}}, "has no mapping, but of the rating"),
    ):
        with pytest.raises(ConfigError, match=reason):
            DatasetConfig.parse({"sources": [{"path": "a.jsonl", **source}]}, origin="test")


@pytest.mark.parametrize(
    "fields",
    [
        {"sources": [{"path": "a.jsonl", "weight": float("inf")}]},
        {"sources": [{"path": "a.jsonl", "weight": 1e13}]},
        {"filters": {"min_rating": float("nan")}},
        {"cleaning": {"replace": {"": "x"}}},
    ],
)
def test_values_that_have_no_meaning(fields: dict[str, Any]):
    with pytest.raises(ConfigError, match=r"Input should be|String should have"):
        DatasetConfig.parse({"sources": [{"path": "a.jsonl"}], **fields}, origin="test")


def test_all_wrong_fields_are_named_at_once(tmp_path: Path):
    path = tmp_path / "dataset.yaml"
    path.write_text("sources: [{path: a.jsonl, weight: -1, colour: red}]\nseed: x")
    with pytest.raises(ConfigError) as caught:
        DatasetConfig.load(path)
    for field in ("sources.0.weight", "sources.0.colour", "seed"):
        assert field in caught.value.message


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.json", "{", "line 1, column 2"),
        ("a.json", "[" * 100_000, "nested too deep"),
        ("a.yaml", "- a", "not a mapping"),
        ("a.yaml", r'a: "\ud800"', "half of a surrogate pair"),
        ("a.json", r'{"a": "\ud800"}', "half of a surrogate pair"),
        ("a.yaml", "a: &a [*a]", "could not be read: Circular reference"),
        ("a.yaml", "a: [", "could not be read: line 1"),
        ("none.yaml", None, "No such file"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, name: str, text: str | None, reason: str):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=reason):
        DatasetConfig.load(tmp_path / name)
