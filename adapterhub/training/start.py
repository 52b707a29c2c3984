"""Training that goes on from the weights of an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from adapterhub.errors import ConfigError
from adapterhub.peft_format.checks import inspect_adapter
from adapterhub.peft_format.config import WEIGHTS_FILE, LoraSettings
from adapterhub.training.config import LoraOptions


def start_from(folder: Path, model: Any, lora: LoraOptions) -> str:
    """Puts an adapter's weights in place of those that peft made.

    Args:
        folder: The adapter's PEFT folder.
        model: The `PeftModel` to train.
        lora: The shape that the model was made with.

    Returns:
        The adapter's digest.

    Raises:
        AdapterInvalidError: The folder holds no sound adapter.
        AdapterIncompatibleError: It is of a kind that is not trained here.
        ConfigError: The adapter has another shape.
    """
    settings = LoraSettings(r=lora.r, lora_alpha=lora.alpha, use_rslora=lora.rslora, use_dora=lora.dora)
    found = inspect_adapter(folder)
    fresh, weights = get_peft_model_state_dict(model), load_file(folder / WEIGHTS_FILE)
    shapes = [{name: tensor.shape for name, tensor in part.items()} for part in (fresh, weights)]
    if settings.canonical() != found.config.settings.canonical() or shapes[0] != shapes[1]:
        raise ConfigError(
            f"The adapter to start from, {folder.name!r}, has another shape than the run's.",
            hint="Give `lora` the rank, alpha, kind and target_modules of its adapter_config.json.",
        )
    set_peft_model_state_dict(model, weights)
    return found.digest
