"""The adapter that a run left in its output folder, served without being registered."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.errors import ConfigError

if TYPE_CHECKING:
    from adapterhub.registry import AdapterRegistry

_CONFIG_FILE = "adapter_config.json"


@contextmanager
def registry_of_checkpoint(
    output_dir: Path, base: str | None, name: str = "checkpoint"
) -> Iterator[tuple[AdapterRegistry, str]]:
    """A temporary registry that holds the last checkpoint of an output folder, and its reference there.

    Args:
        output_dir: Holds `checkpoint-N` folders, or is one.
        base: The base; None leaves it to the checkpoint's own files.
        name: The adapter's name there.

    Raises:
        ConfigError: There is no checkpoint, or what it says of its run cannot be read.
        AdapterInvalidError: Its files are damaged.
    """
    from adapterhub._files import scratch_folder
    from adapterhub.registry import AdapterRegistry
    from adapterhub.training.checkpoints import prompt_profile_of_checkpoint

    checkpoint = last_checkpoint(output_dir)
    with scratch_folder(ConfigError, "The checkpoint cannot be served") as folder:
        registry = AdapterRegistry(folder)
        prompt = prompt_profile_of_checkpoint(checkpoint)
        yield registry, registry.register(name, checkpoint, base=base, prompt=prompt).ref


def last_checkpoint(output_dir: Path) -> Path:
    """The folder `checkpoint-N` of the highest N, or the folder itself if it is an adapter.

    Raises:
        ConfigError: It is neither.
    """
    steps = {
        path: re.fullmatch(r"checkpoint-(\d+)", path.parent.name)
        for path in output_dir.glob(f"*/{_CONFIG_FILE}")
    }
    found = {path.parent: int(match[1]) for path, match in steps.items() if match}
    if found:
        return max(found, key=lambda folder: found[folder])
    if (output_dir / _CONFIG_FILE).is_file():
        return output_dir
    raise ConfigError(
        f"There is no checkpoint in {str(output_dir)!r}.",
        hint="A fine-tune with an output_dir leaves a folder checkpoint-N there.",
    )
