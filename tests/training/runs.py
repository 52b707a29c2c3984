"""Runs on a tiny base, for the tests of training."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from adapterhub.training.config import FinetuneConfig

ANSWERS = {"fox": "dog", "one": "two", "three": "four", "quick": "brown"}


def write_pairs(path: Path, records: int = 40) -> Path:
    """Writes questions of one to four words, each with its answer."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(records):
            word = draw.choice(list(ANSWERS))
            question = " ".join([word] * draw.randint(1, 4))
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": ANSWERS[word]}]
            print(json.dumps({"messages": turns}), file=file)
    return path


def run(
    base: Path, dataset: Path, /, *, data: dict[str, Any] | None = None, **changes: Any
) -> FinetuneConfig:
    """A run of four steps, with changes."""
    train = {"max_steps": 4, "batch_size": 4, "learning_rate": 5e-3, **changes.pop("train", {})}
    fields = {
        "name": "pairs",
        "base": str(base),
        "data": {"train": str(dataset), **(data or {})},
        "train": train,
    }
    return FinetuneConfig.model_validate({**fields, **changes})
