"""The configuration of a dataset: paths, aliases, and errors that name every wrong field."""

import json
from pathlib import Path

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


def test_json_and_impruvers_names_are_read(tmp_path: Path):
    content = {"datasets": [{"name": "user/data", "subset": "ru"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    (source,) = DatasetConfig.load(tmp_path / "dataset.json").sources
    assert (source.path, source.subset, source.label) == ("user/data", "ru", "user/data/ru")


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
        ("a.yaml", "a: [", "could not be read: line 1"),
        ("none.yaml", None, "No such file"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, name: str, text: str | None, reason: str):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=reason):
        DatasetConfig.load(tmp_path / name)
