"""Writing the files of a trained adapter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from adapterhub._files import os_errors_as
from adapterhub.errors import TrainingError
from adapterhub.peft_format.config import WEIGHTS_FILE
from adapterhub.requests import prompts


def save_adapter(model: Any, out: Path, style: prompts.PromptStyle, *, dtype: str | None = None) -> None:
    """Writes `adapter_config.json`, `adapter_model.safetensors` and the chat template, the same bytes each time.

    Args:
        model: peft's model.
        out: The folder.
        style: How the prompts are rendered.
        dtype: The weights' dtype in the file, by torch's name; that of the model if not given.

    Raises:
        OSError: They could not be written; or SafetensorError or RuntimeError, see `write_errors`.
    """
    out.mkdir(exist_ok=True)
    if style.template:  # the base's may change
        (out / "chat_template.jinja").write_text(style.template, encoding="utf-8")
    # The default, "auto", asks the hub whether the base's vocabulary changed.
    model.save_pretrained(out, save_embedding_layers=False)
    (out / "README.md").unlink()  # peft's unfilled template
    if dtype:
        _cast(out / WEIGHTS_FILE, getattr(torch, dtype))
    path = out / "adapter_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    # peft holds sets, whose order is arbitrary.
    for modules in ("target_modules", "exclude_modules"):
        settings[modules] = sorted(settings[modules] or ()) or None
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _cast(path: Path, dtype: torch.dtype) -> None:
    weights = {name: weight.to(dtype) for name, weight in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


@contextmanager
def write_errors(what: str, hint: str) -> Iterator[None]:
    """Raises what a full disk makes torch and safetensors raise as a TrainingError.

    Args:
        what: The first part of its message, as in "The checkpoint could not be written".
        hint: What to do.
    """
    try:
        with os_errors_as(TrainingError, what):
            yield
    except torch.OutOfMemoryError:
        raise
    except (SafetensorError, RuntimeError) as error:
        raise TrainingError(f"{what}: {str(error).splitlines()[0]}.", hint=hint) from error
