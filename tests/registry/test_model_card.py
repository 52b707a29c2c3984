from __future__ import annotations

import time
from pathlib import Path

import pytest

from adapterhub.registry.cards import CardFields, Evaluation
from adapterhub.registry.model_card import read_model_card

CARD = """---
base_model: Qwen/Qwen3-0.6B
license: apache-2.0
language:
- en
- ru
datasets: org/requests
pipeline_tag: text-generation
tags:
- lora
- base_model:adapter:/home/someone/base
model-index:
- name: json
  results:
  - task: {type: text-generation, name: Writing JSON}
    dataset: {type: org/requests, name: Requests, split: test}
    metrics:
    - {type: exact_match, value: 0.96, name: Exact match, verified: true}
    - {type: rouge, value: high}
    - {type: broken, value: [1, 2]}
---
# JSON

<!-- Provide a quick summary. -->

- [x] a list

Turns a sentence
into JSON.

More text.
"""


def read(tmp_path: Path, text: str | bytes) -> tuple[CardFields, str | None]:
    (tmp_path / "README.md").write_bytes(text.encode() if isinstance(text, str) else text)
    return read_model_card(tmp_path)


def test_all_fields(tmp_path: Path) -> None:
    fields, base = read(tmp_path, CARD)
    assert base == "Qwen/Qwen3-0.6B"
    common = {"task_type": "text-generation", "dataset_name": "Requests", "dataset_type": "org/requests"}
    assert fields == {
        "description": "Turns a sentence into JSON.",
        "tags": ("lora",),
        "language": ("en", "ru"),
        "license": "apache-2.0",
        "datasets": ("org/requests",),
        "task": "text-generation",
        "evaluation": (
            Evaluation(
                **common,
                dataset_split="test",
                metric_type="exact_match",
                metric_value=0.96,
                metric_name="Exact match",
            ),
            Evaluation(**common, dataset_split="test", metric_type="rouge", metric_value="high"),
        ),
    }


def test_windows_line_ends(tmp_path: Path) -> None:
    assert read(tmp_path, CARD.replace("\n", "\r\n")) == read(tmp_path, CARD)


def test_no_model_card(tmp_path: Path) -> None:
    assert read_model_card(tmp_path) == ({}, None)


def test_text_alone(tmp_path: Path) -> None:
    assert read(tmp_path, "# Title\n\nWhat it does.\n") == ({"description": "What it does."}, None)


def test_an_unfilled_template_sets_nothing(tmp_path: Path) -> None:
    text = "---\nlibrary_name: peft\n---\n# Model Card for Model ID\n\n## Uses\n\nUse: [More Information Needed]\n"
    assert read(tmp_path, text) == ({}, None)


def test_long_text_is_cut(tmp_path: Path) -> None:
    description = read(tmp_path, "word " * 1000)[0]["description"]
    assert len(description) == 500
    assert description.endswith("…")


BOMB = "a: &a [x, x]\n" + "\n".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "matter",
    [
        "license: [",
        "just text",
        "- a\n- list",
        "license: {a: 1}\ntags: 3\nlanguage: null\ndatasets: [1, {}]\nmodel-index: 5",
        "model-index: [1, {results: 2}, {results: [{metrics: x}, {metrics: [{type: 1, value: 1}]}]}]",
        "model-index:\n- results:\n  - metrics: [{type: t, value: 1"
        + "0" * 400
        + "}, {type: t, value: .nan}]",
        "license: !!python/object/apply:os.system ['true']",
        "a: " + "[" * 5000,
        BOMB,
        BOMB.replace("&", "&-").replace("*", "*-"),  # names that look like no name
        BOMB.replace("&", "!!seq &"),
        "a: {b: &x [1]}\nlicense: *x",
        "license: !!bool maybe",
        "license: !!timestamp never",
        "license: !!int x",
        "date: 2024-13-45",
        f"license: {'9' * 60_000}",
        f"license: {'9:' * 30_000}9",
        "x: " + "y" * 70_000,
    ],
)
def test_front_matter_that_fits_nothing_is_left_out(tmp_path: Path, matter: str) -> None:
    assert read(tmp_path, f"---\n{matter}\n---\n") == ({}, None)


def test_a_metric_of_a_huge_number(tmp_path: Path) -> None:
    metric = f"metrics: [{{type: t, value: 1}}], task: {{type: 0x{'f' * 9000}}}, dataset: {{name: [1]}}"
    fields, _ = read(tmp_path, f"---\nmodel-index: [{{results: [{{{metric}}}]}}]\n---\n")
    assert fields == {
        "evaluation": (Evaluation(task_type="", dataset_name="", metric_type="t", metric_value=1.0),)
    }


SIZE = 2**20 - 10


@pytest.mark.alone
@pytest.mark.parametrize(
    "text",
    [
        "---" + "\n" * SIZE,
        "---\n" + "\n---x" * (SIZE // 5),
        "---\n" + "\n--- \t" * (SIZE // 6),
        "---" + " \n" * (SIZE // 2),
        "---\na: b\n---" + "\n " * (SIZE // 2),
        "\n \t" * (SIZE // 3),
        "---\n" + "? " * 30_000 + "\n---\n",
        "---\n" + "- " * 30_000 + "\n---\n",
        "---\n" + "a: {" * 15_000 + "\n---\n",
        "---\n" + "[a]: " * 12_000 + "\n---\n",
        "---\n" + '"' + "\\\n" * 30_000 + "\n---\n",
    ],
)
def test_the_time_grows_with_the_size(tmp_path: Path, text: str) -> None:
    start = time.process_time()
    read(tmp_path, text)
    assert time.process_time() - start < 10  # at worst 64 KiB of YAML; what is quadratic takes minutes


@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b"", b"---\n", b"---\n---\n"])
def test_odd_bytes(tmp_path: Path, text: bytes) -> None:
    fields, base = read(tmp_path, text)
    assert base is None
    assert fields.keys() <= {"description"}


def test_a_model_card_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    assert read(tmp_path, "word " * 300_000) == ({}, None)


def test_the_template_that_peft_saves_sets_no_description(tmp_path: Path) -> None:
    from huggingface_hub import ModelCard, ModelCardData

    ModelCard.from_template(ModelCardData(base_model="x")).save(tmp_path / "README.md")
    assert "description" not in read_model_card(tmp_path)[0]
