"""The output folder of a run: the adapter with all that serving it elsewhere needs, and `result.json`.

Checkpoints and losses are written there while training.
"""

from __future__ import annotations

import json
import os
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
_PATHS = {
    "base",
    "converter",
    "initial_adapter",
    "output_dir",
    "path",
    "system_file",
    "tokenizer",
    "train",
    "train_path",
    "val_path",
    "validation",
}
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
        for file in sorted(scratch.iterdir()):
            write_atomic(folder / file.name, file.read_bytes())
        for place in (folder, folder / f"checkpoint-{step}"):
            write_atomic(place / CONFIG_FILE, _as_yaml(config, place).encode())


def save_result(folder: Path, result: FinetuneResult) -> None:
    """Writes `result.json`, the last of a run's files.

    Raises:
        TrainingError: It could not be written.
    """
    with os_errors_as(TrainingError, _COULD_NOT):
        write_atomic(folder / RESULT_FILE, result.to_json().encode())


def _as_yaml(config: FinetuneConfig, place: Path) -> str:
    fields = config.in_folder(Path.cwd()).model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(_relative(fields, place.resolve()), sort_keys=False, allow_unicode=True)


def _relative(value: Any, place: Path, name: str = "") -> Any:
    """The settings with paths from a folder, where they are read again; they name no folder above those they share."""
    match value:
        case dict():
            return {key: _relative(each, place, key) for key, each in value.items()}
        case list():
            return [_relative(each, place, name) for each in value]
        case str() if name in _PATHS and Path(value).is_absolute():
            return os.path.relpath(Path(value).resolve(), place)
    return value
