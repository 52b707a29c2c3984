"""The data card: figures, JSON, Markdown and the picture."""

import hashlib
import json
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pytest
import yaml

from adapterhub.dataset.card_markdown import card_as_markdown
from adapterhub.dataset.composed import ComposedDataset, SourceReport, StageReport
from adapterhub.dataset.config import DatasetConfig
from adapterhub.dataset.data_card import DataCard, Distribution, PartCard, length_histogram
from tests.dataset.samples import sample

TRAIN = [sample("12345", "a" * n, source="x.csv", tokens=n + 7, rating=float(n)) for n in (1, 2, 3, 10)]
VAL = [sample("?", "b", source="org/data", tokens=3)]


def card(tmp_path: Path, **fields: object) -> DataCard:
    (tmp_path / "x.csv").write_text("text\n")
    config = DatasetConfig.model_validate(
        {
            "sources": [{"path": "x.csv"}, {"path": "org/data"}],
            "tokenizer": "adapterhub-demo",
            "seed": 5,
        }
    )
    reports = [
        SourceReport("x.csv", "text", (tmp_path / "x.csv",), "cc-by-4.0", None, 9, Counter({"empty": 2})),
        SourceReport("org/data", "alpaca", (), "mit", "abc", 3),
    ]
    stages = [
        StageReport("cleaning", 6, 5, Counter({"empty": 1}), Counter({"line ends": 4})),
        StageReport("filters", 10, 5, Counter({"language": 2, "a|b": 3}), Counter()),
    ]
    parts = PartCard.of("train.jsonl", "1" * 64, TRAIN), PartCard.of("val.jsonl", "2" * 64, VAL)
    paths = tmp_path / "train.jsonl", tmp_path / "val.jsonl", tmp_path / "train.card.json"
    return DataCard.of(config, ComposedDataset(*paths, TRAIN, VAL, reports, stages), parts)


@pytest.mark.spec("2-F8")
def test_the_figures(tmp_path):
    content = json.loads(card(tmp_path).to_json())
    assert (content["seed"], content["tokenizer"]) == (5, "adapterhub-demo")
    assert content["sources"][0] == {
        "name": "x.csv",
        "license": "cc-by-4.0",
        "revision": None,
        "converter": "text",
        "files": [{"name": "x.csv", "sha256": hashlib.sha256(b"text\n").hexdigest()}],
        "rows": 9,
        "dropped": {"empty": 2},
        "train": 4,
        "val": 0,
    }
    assert (content["sources"][1]["revision"], content["sources"][1]["val"]) == ("abc", 1)
    assert content["stages"][1] == {
        "name": "filters",
        "kept": 5,
        "dropped": {"a|b": 3, "language": 2},
        "changed": {},
    }
    assert content["train"]["records"] == 4
    assert content["train"]["tokens"] == {
        "min": 8,
        "mean": 11,
        "median": 9.5,
        "p95": 15.95,
        "max": 17,
        "total": 44,
    }
    assert content["train"]["characters"]["total"] == 4 * 6 + 16
    assert content["train"]["answer_characters"]["max"] == 10
    assert content["train"]["ratings"]["mean"] == 4
    assert content["val"]["ratings"] is None


def test_no_path_of_this_machine_is_on_the_card(tmp_path):
    found = card(tmp_path)
    assert str(tmp_path) not in found.to_json() + card_as_markdown(found)


def test_markdown(tmp_path):
    text = card_as_markdown(card(tmp_path), "lengths.svg")
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header) == {"license": ["cc-by-4.0", "mit"], "size_categories": ["n<1K"]}
    assert "| reading x.csv | empty | 2 |\n| cleaning | empty | 1 |\n| filters | a\\|b | 3 |" in body
    assert "| cleaning | line ends | 4 |" in body
    assert "| train.jsonl | tokens | 8 | 11 | 9.5 | 15.95 | 17 | 44 |" in body
    assert f"| train.jsonl | 4 | {'1' * 64} |" in body
    assert "![Lengths of the records](lengths.svg)" in body
    widths = [line.replace("\\|", "").count("|") for line in body.splitlines() if line.startswith("| source")]
    assert widths == [9]
    assert "](" not in card_as_markdown(card(tmp_path))


def test_a_distribution_of_nothing():
    assert Distribution.of([]) is None


@pytest.mark.parametrize(("samples", "unit"), [(TRAIN, "tokens"), ([sample("?", "a")], "characters")])
def test_the_histogram(samples, unit):
    svg = length_histogram({"train": samples, "validation": samples[:1]})
    texts = [
        element.text
        for element in ElementTree.fromstring(svg).iter()
        if element.text and element.text.strip()
    ]
    assert {unit, "records", "train", "validation"} <= set(texts)
