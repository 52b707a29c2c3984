"""Packed examples are trained as if each were alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from adapterhub.base.loading import load_base
from adapterhub.errors import ConfigError
from adapterhub.training.losses import TrainingStep
from adapterhub.training.packing import check_packing, collate_packed, pack
from adapterhub.training.tokenizing import IGNORE_INDEX
from adapterhub.training.trainer import train_adapter
from adapterhub.training.training_result import TrainingResult
from tests.tiny import make_base
from tests.training.runs import run, write_pairs

RECORDS = 24


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("data") / "train.jsonl", RECORDS)


def losses(base: Path, dataset: Path, out: Path, **changes: Any) -> tuple[list[float], TrainingResult]:
    """Each step learns from all records, so their order makes no difference."""
    train = {"max_steps": 3, "batch_size": RECORDS, **changes.pop("train", {})}
    steps: list[TrainingStep] = []
    out.mkdir()
    result = train_adapter(run(base, dataset, train=train, **changes), out, progress=steps.append)
    return [step.loss or 0.0 for step in steps], result


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {}),
        ("gpt2", {"attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0}),
        ("mistral", {"sliding_window": 24}),  # shorter than a row
        ("qwen2", {}),
        ("gemma3", {}),  # layers with a window and without
    ],
)
def test_the_losses_are_those_of_the_examples_alone(
    kind: str, settings: dict[str, Any], dataset: Path, tmp_path: Path
):
    base = make_base(tmp_path / kind, kind, **settings)
    plain = {"quantization": None, "compute_dtype": "float32", "data": {"validation": dataset}}
    alone, expected = losses(base, dataset, tmp_path / "alone", **plain)
    packed, found = losses(
        base, dataset, tmp_path / "packed", train={"packing": True, "max_length": 200}, **plain
    )
    assert packed == pytest.approx(alone, rel=1e-5)
    assert found.eval_loss == pytest.approx(expected.eval_loss, rel=1e-5)
    assert alone[0] > alone[-1] + 0.01


def test_a_quantised_base_trains_on_packed_examples(tiny_base: Path, dataset: Path, tmp_path: Path):
    alone, _ = losses(tiny_base, dataset, tmp_path / "alone", train={"max_steps": 1})
    packed, _ = losses(
        tiny_base, dataset, tmp_path / "packed", train={"max_steps": 1, "packing": True, "max_length": 200}
    )
    assert packed == pytest.approx(alone, rel=1e-4)


def test_rows_are_filled_and_no_example_is_cut():
    examples = [[number] * length for number, length in enumerate([7, 3, 5, 2, 8, 1, 10, 4], start=1)]
    rows = pack(Dataset.from_dict({"input_ids": examples, "labels": examples}), 10)
    found = []
    for row in rows:
        ids = iter(row["input_ids"])
        found += [[next(ids) for _ in range(length)] for length in row["seq_lengths"]]
        assert next(ids, None) is None
        assert row["labels"] == row["input_ids"]
    assert sorted(found) == examples
    assert sorted(len(row["input_ids"]) for row in rows) == [10, 10, 10, 10]


def test_a_batch_has_positions_from_0_and_no_label_across_a_boundary():
    rows = [
        {"input_ids": [5, 6, 7, 8, 9], "labels": [5, 6, 7, 8, 9], "seq_lengths": [3, 2]},
        {"input_ids": [4, 3], "labels": [4, 3], "seq_lengths": [1, 1]},
    ]
    no = IGNORE_INDEX
    batch = collate_packed(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [4, 3, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[no, 6, 7, no, 9], [no, no, no, no, no]]
    assert batch.keys() == {"input_ids", "labels", "position_ids"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_base_that_mixes_packed_examples_is_refused(tiny_base: Path, dtype: str):
    base = load_base(tiny_base, quantization=None, compute_dtype=dtype, training=True)
    examples = [[4, 5, 6, 7, 8, 9], [9, 8, 7, 6]]
    check_packing(base.model, base.compute_dtype, examples)
    forward = base.model.forward

    def without_boundaries(input_ids: torch.Tensor, position_ids: torch.Tensor, **options: Any) -> Any:
        return forward(input_ids=input_ids, **options)

    base.model.forward = without_boundaries
    with pytest.raises(ConfigError, match="cannot be trained on packed examples") as caught:
        check_packing(base.model, base.compute_dtype, examples)
    assert "train.packing" in (caught.value.hint or "")


def test_packing_takes_fewer_rows(tiny_base: Path, dataset: Path, tmp_path: Path):
    train = {"max_steps": None, "epochs": 1, "batch_size": 2, "packing": True, "max_length": 200}
    packed, result = losses(tiny_base, dataset, tmp_path / "packed", train=train)
    tokens = sum(len(example.input_ids) for example in result.train.examples)
    assert len(packed) <= tokens // 400 + 1 < RECORDS // 2
