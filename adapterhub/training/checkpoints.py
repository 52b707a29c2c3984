"""Checkpoints of a run, from which it goes on to the same bytes as if it had never been interrupted.

A checkpoint is a folder `checkpoint-<step>` with the files of transformers' Trainer: the adapter, the states of
optimiser, scheduler and random number generators, the losses so far; and `run.json`, with the run that it belongs to
and the digests of its files. It is written under another name first, so that one which is there is whole, even after
`kill -9`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from adapterhub._files import new_folder, open_folder, remove_abandoned, sha256_file
from adapterhub.errors import ConfigError
from adapterhub.registry.cards import PromptProfile
from adapterhub.training.adapter_files import write_errors
from adapterhub.training.config import FinetuneConfig

RUN_FILE = "run.json"
_GO_ON = "Free space in output_dir, then continue from the checkpoint before it with train.resume."
_NAME = re.compile(r"checkpoint-(\d+)")
_TEMPORARY = re.compile(r"\.checkpoint-\d+\.[0-9a-f]{32}")
# What may change between the parts of a run without a change of the weights.
_FREE: dict[str, Any] = {
    "name": True,
    "output_dir": True,
    "report_to": True,
    "run_name": True,
    "data": {"train", "validation"},  # by digest
    "initial_adapter": True,  # by the weights that the checkpoint holds
    "train": {"resume", "save_every", "save_total_limit", "save_dtype", "logging_steps"},
    "card": {"description", "tags", "task", "language", "license", "routing", "serving"},
}


class Checkpoints:
    """The checkpoints of one run in its output folder."""

    def __init__(self, folder: Path, run: dict[str, JsonValue], *, keep: int | None = None) -> None:
        """Args:
        folder: Where they are; it need not exist.
        run: What the run is, from `describe_run`.
        keep: Number of checkpoints to keep, the newest; None keeps all.
        """
        self._folder, self._run, self._keep = folder, run, keep

    def last(self) -> Path | None:
        """The newest checkpoint, to go on from; None without any.

        Raises:
            ConfigError: It belongs to another run, or cannot be read.
        """
        found = _found(self._folder)
        if found:
            self._check_run(found[-1])
        return found[-1] if found else None

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Writes the checkpoint of a step, and removes the oldest.

        Args:
            step: Optimiser steps done.
            write: Writes the files into a folder.

        Raises:
            TrainingError: It cannot be written, for example because the disk is full; earlier ones stay.
        """
        what = f"The checkpoint at step {step} could not be written"
        with write_errors(what, _GO_ON), new_folder(self._folder / f"checkpoint-{step}") as temporary:
            write(temporary)
            content = {"run": self._run, "files": _digests(temporary)}
            (temporary / RUN_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        for old in _found(self._folder)[: -self._keep] if self._keep else ():
            shutil.rmtree(old, ignore_errors=True)
        with open_folder(self._folder) as descriptor:
            remove_abandoned(descriptor, _TEMPORARY)

    def _check_run(self, checkpoint: Path) -> None:
        before = _read_whole(checkpoint)
        changed = sorted(name for name in {*before, *self._run} if before.get(name) != self._run.get(name))
        if changed:
            raise ConfigError(
                f"{str(checkpoint)!r} belongs to another run: {', '.join(changed)} changed.",
                hint="Set them as they were, or give another output_dir; `initial_adapter` starts from its weights.",
            )


def _digests(folder: Path) -> dict[str, JsonValue]:
    return {path.name: f"sha256:{sha256_file(path)}" for path in sorted(folder.iterdir())}


def _read_whole(checkpoint: Path) -> dict[str, JsonValue]:
    """The run of a checkpoint.

    Raises:
        ConfigError: A file of it is missing, or is not as it was written.
    """
    damaged = RUN_FILE
    try:
        content = json.loads((checkpoint / RUN_FILE).read_text(encoding="utf-8"))
        run: dict[str, JsonValue] = dict(content["run"])
        for damaged, digest in content["files"].items():
            if digest != f"sha256:{sha256_file(checkpoint / damaged)}":
                raise ValueError(damaged)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise ConfigError(
            f"{str(checkpoint)!r} cannot be continued: its {damaged} is missing or damaged.",
            hint="Remove that folder to continue from the checkpoint before it.",
        ) from None
    return run


def prompt_profile_of_checkpoint(checkpoint: Path) -> PromptProfile:
    """The prompt profile that a checkpoint was trained with; that of another program's checkpoint is empty.

    Args:
        checkpoint: Its folder.

    Raises:
        ConfigError: Its `run.json` cannot be read.
    """
    prefix, nested = "card.prompt.", "generation."
    try:
        run = json.loads((checkpoint / RUN_FILE).read_text(encoding="utf-8"))["run"]
        given = {name.removeprefix(prefix): run[name] for name in run if name.startswith(prefix)}
        fields = {name: given[name] for name in given if given[name] is not None and nested not in name}
        generation = {name.removeprefix(nested): given[name] for name in given if name.startswith(nested)}
        return PromptProfile.model_validate({**fields, **({"generation": generation} if generation else {})})
    except FileNotFoundError:
        return PromptProfile()
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"The {RUN_FILE} of {str(checkpoint)!r} cannot be read.",
            hint="Remove it, or take another checkpoint.",
        ) from error


def refuse_existing(folder: Path) -> None:
    """Raises ConfigError if there are checkpoints already, which a new run would mix with its own."""
    if found := _found(folder):
        raise ConfigError(
            f"The output folder {str(folder)!r} holds {found[-1].name} of an earlier run.",
            hint="Continue it with train.resume (`--resume`), or give another output_dir.",
        )


def _found(folder: Path) -> list[Path]:
    """The checkpoints, the oldest first."""
    if not folder.is_dir():
        return []
    steps = {path: _NAME.fullmatch(path.name) for path in folder.iterdir()}
    return sorted((path for path in steps if steps[path]), key=lambda path: int(path.name[11:]))


def describe_run(config: FinetuneConfig, base_fingerprint: str) -> dict[str, JsonValue]:
    """All that the weights of a run depend on, flat: the settings by their names, and the digests of base and data.

    Args:
        config: The run.
        base_fingerprint: The base's.
    """
    run = dict(_flat(config.model_dump(mode="json", exclude=_FREE)))
    files = {"data.train": config.data.train, "data.validation": config.data.validation}
    digests = {name: f"sha256:{sha256_file(path)}" for name, path in files.items() if path}
    return {**run, **digests, "base": base_fingerprint}


def _flat(settings: dict[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, JsonValue]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
