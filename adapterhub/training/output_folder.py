"""The output folder of a run: the adapter with all that serving it elsewhere needs, and `result.json`.

Checkpoints and losses are written there while training.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from adapterhub._files import check_writable_folder, os_errors_as, scratch_folder, write_atomic
from adapterhub.errors import ConfigError, TrainingError
from adapterhub.training.config import FinetuneConfig

CONFIG_FILE = "finetune.yaml"
RESULT_FILE = "result.json"
_COULD_NOT = "The output folder could not be written"


class FinetuneResult(BaseModel):
    """The result of a run, in JSON under camelCase names."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        serialize_by_alias=True,
        use_attribute_docstrings=True,
    )

    artifacts_dir: str
    """The output folder."""
    status: Literal["success", "failure"]
    """Whether the adapter was trained and registered."""
    last_train_step: int | None = None
    """Optimiser steps done."""
    final_model_name: str | None = None
    """The reference of the registered adapter, `name@version`."""
    metrics: dict[str, float] | None = None
    """Figures under transformers' names: `train_loss`, `eval_loss`, `train_steps_per_second`, ..."""

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Reads the result in an output folder.

        Raises:
            OSError: There is none.
        """
        return cls.model_validate_json((folder / RESULT_FILE).read_bytes())

    def to_json(self) -> str:
        """The result as JSON, without what there is none of."""
        return json.dumps(self.model_dump(exclude_none=True), indent=2) + "\n"


def check_output_folder(folder: Path) -> None:
    """Refuses an output folder that could not be written, and changes nothing.

    Raises:
        ConfigError: A file is in its place, or it, or the folder to make it in, is read-only.
    """
    check_writable_folder(folder, ConfigError, f"output_dir {str(folder)!r}")


def save_artifacts(config: FinetuneConfig, folder: Path, adapter: Path, tokenizer: Any, step: int) -> None:
    """Writes the adapter's files, the tokenizer and the run's configuration, which goes into the last checkpoint too.

    Args:
        config: The run, as it was given.
        folder: The output folder.
        adapter: The folder of the adapter's files.
        tokenizer: The base's tokenizer.
        step: The last step.

    Raises:
        TrainingError: They could not be written.
    """
    with os_errors_as(TrainingError, _COULD_NOT), scratch_folder(TrainingError, _COULD_NOT) as scratch:
        tokenizer.save_pretrained(scratch)
        shutil.copytree(adapter, scratch, dirs_exist_ok=True)
        (scratch / CONFIG_FILE).write_text(_as_yaml(config), encoding="utf-8")
        for file in sorted(scratch.iterdir()):
            write_atomic(folder / file.name, file.read_bytes())
        write_atomic(folder / f"checkpoint-{step}" / CONFIG_FILE, (scratch / CONFIG_FILE).read_bytes())


def save_result(folder: Path, result: FinetuneResult) -> None:
    """Writes `result.json`, the last of a run's files.

    Raises:
        TrainingError: It could not be written.
    """
    with os_errors_as(TrainingError, _COULD_NOT):
        write_atomic(folder / RESULT_FILE, result.to_json().encode())


def _as_yaml(config: FinetuneConfig) -> str:
    fields = config.in_folder(Path.cwd()).model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)
