"""The output folder of a run: the adapter with all that serving it elsewhere needs, and `result.json`.

Checkpoints and losses are written there while training.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from adapterhub._files import (
    check_writable_folder,
    hold,
    open_folder,
    os_errors_as,
    scratch_folder,
    write_atomic,
)
from adapterhub.errors import ConfigError, TrainingError
from adapterhub.training.checkpoints import refuse_existing
from adapterhub.training.config import FinetuneConfig

if TYPE_CHECKING:
    from adapterhub.training.training_result import TrainingResult

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


@contextmanager
def output_folder(folder: Path | None, *, resume: bool) -> Iterator[None]:
    """Makes the output folder of a run, and admits one run at a time to it; at the end an empty one is removed.

    Args:
        folder: The folder; None does nothing.
        resume: Whether it may hold checkpoints.

    Raises:
        ConfigError: Another run is writing there, or has left checkpoints there; or a file is in its place, or it, or
            the folder to make it in, cannot be read or written.
    """
    if folder is None:
        yield
        return
    check_writable_folder(folder, ConfigError, f"output_dir {str(folder)!r}")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with ExitStack() as stack:
        with os_errors_as(ConfigError, _COULD_NOT):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = stack.enter_context(open_folder(folder))
            # A run that ended just now may have removed the folder that was opened.
            is_mine = hold(descriptor) and os.path.samestat(os.fstat(descriptor), folder.stat())
        if not is_mine:
            raise ConfigError(
                f"Another run is writing into the output folder {str(folder)!r}.",
                hint="Wait until it has ended, or give another output_dir.",
            )
        try:
            if not resume:
                refuse_existing(folder)
            yield
        finally:
            with suppress(OSError):  # it is not empty
                for path in made:
                    path.rmdir()


def save_tokenizer(tokenizer: Any, folder: Path, end_token_ids: Collection[int]) -> None:
    """Writes the tokenizer's files, and `generation_config.json` with the tokens at which answers end.

    Args:
        tokenizer: The base's tokenizer.
        folder: An existing folder.
        end_token_ids: The base's end tokens, and those that the training answers end with.

    Raises:
        OSError: They could not be written.
    """
    tokenizer.save_pretrained(folder)
    content = json.dumps({"eos_token_id": sorted(end_token_ids)}, indent=2)
    (folder / "generation_config.json").write_text(content + "\n", encoding="utf-8")


def save_artifacts(config: FinetuneConfig, folder: Path, adapter: Path, result: TrainingResult) -> None:
    """Writes the adapter's files, the tokenizer and the run's configuration, which goes into the last checkpoint too.

    Args:
        config: The run, as it was given.
        folder: The output folder.
        adapter: The folder of the adapter's files.
        result: The result of the training.

    Raises:
        TrainingError: They could not be written.
    """
    with scratch_folder(TrainingError, _COULD_NOT) as scratch:
        ends = result.base.end_token_ids | result.train.end_token_ids
        save_tokenizer(result.base.tokenizer, scratch, ends)
        shutil.copytree(adapter, scratch, dirs_exist_ok=True)
        for file in sorted(scratch.iterdir()):
            write_atomic(folder / file.name, file.read_bytes())
        for place in (folder, folder / f"checkpoint-{result.steps}"):
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
