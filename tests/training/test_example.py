"""`examples/finetune.yaml` shows every field with its default, and the run works."""

import re
from pathlib import Path

from adapterhub import AdapterRegistry
from adapterhub.training import config
from adapterhub.training.config import FinetuneConfig
from adapterhub.training.finetuning import finetune

EXAMPLE = Path(__file__).parents[2] / "examples" / "finetune.yaml"
SECTIONS = (
    config.FinetuneConfig,
    config.DataOptions,
    config.LoraOptions,
    config.TrainOptions,
    config.CardOptions,
)


def test_it_shows_every_field():
    shown = set(re.findall(r"^[ #]*(\w+):", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE))
    assert [name for section in SECTIONS for name in section.model_fields if name not in shown] == []


def test_the_defaults_that_it_shows_are_the_defaults():
    lines = re.findall(r"^ *# (\w+): (\S+)", EXAMPLE.read_text(encoding="utf-8"), re.MULTILINE)
    fields = {**config.LoraOptions.model_fields, **config.TrainOptions.model_fields}
    # Where the default is None, the example shows a value that makes sense.
    shown = {name: value for name, value in lines if name in fields and fields[name].default is not None}
    assert len(shown) > 8
    assert shown == {name: str(fields[name].default).replace("False", "false") for name in shown}


def test_it_runs(tiny_base: Path, tmp_path: Path):
    example = FinetuneConfig.load(EXAMPLE)
    short = example.train.model_copy(update={"epochs": None, "max_steps": 2})
    registry = AdapterRegistry(tmp_path)
    card = finetune(example.model_copy(update={"base": str(tiny_base), "train": short}), registry)
    assert card.ref == "priority@1"
    assert (card.description, card.prompt.generation["max_tokens"]) == (
        "Sorts a support ticket by priority.",
        8,
    )
    assert card.lineage.settings["records"] == 49
    assert card.evaluation[0].dataset_name == "finetune.jsonl"
