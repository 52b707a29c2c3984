"""Training on begins with the weights that it is given."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from adapterhub import AdapterRegistry
from adapterhub.demo import demo_registry_folder
from adapterhub.training.config import FinetuneConfig
from examples.demo.further import further
from examples.demo.tasks import agent_task

START = demo_registry_folder() / "tools" / "1"


def test_a_step_of_next_to_nothing_ends_where_it_began(tmp_path: Path) -> None:
    records = agent_task.generate("train", 2, 5)
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    config = FinetuneConfig.model_validate(
        {
            "name": "on",
            "base": "adapterhub-demo",
            "data": {"train": tmp_path / "data.jsonl"},
            "lora": {"r": 32, "alpha": 64},
            "train": {"max_steps": 1, "batch_size": 2, "learning_rate": 1e-7},
        }
    )
    registry = AdapterRegistry(tmp_path / "adapters")
    assert further(config, START, registry) == "on@1"
    before, after = (
        load_file(folder / "adapter_model.safetensors") for folder in (START, registry.root / "on" / "1")
    )
    assert before.keys() == after.keys()
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, atol=1e-6, rtol=0)
