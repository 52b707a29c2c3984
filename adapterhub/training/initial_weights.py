"""Training that starts from the weights of an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from adapterhub.errors import ConfigError
from adapterhub.peft_format.checks import inspect_adapter
from adapterhub.peft_format.config import WEIGHTS_FILE, LoraSettings
from adapterhub.training.config import LoraOptions


def load_initial_weights(folder: Path, model: Any, lora: LoraOptions) -> str:
    """Loads an adapter's weights into the LoRA layers of a `PeftModel`.

    Args:
        folder: The adapter's PEFT folder.
        model: The `PeftModel` to train.
        lora: The LoRA settings of the model.

    Returns:
        The adapter's digest.

    Raises:
        AdapterInvalidError: The adapter's files are damaged.
        AdapterIncompatibleError: The adapter is of a kind that cannot be trained.
        ConfigError: The adapter's LoRA settings or shapes are not those of the run.
    """
    settings = LoraSettings(r=lora.r, lora_alpha=lora.alpha, use_rslora=lora.rslora, use_dora=lora.dora)
    info = inspect_adapter(folder)
    new, weights = get_peft_model_state_dict(model), load_file(folder / WEIGHTS_FILE)
    shapes = [{name: tensor.shape for name, tensor in part.items()} for part in (new, weights)]
    if settings.canonical() != info.config.settings.canonical() or shapes[0] != shapes[1]:
        raise ConfigError(
            f"The initial adapter {folder.name!r} has another shape than the run's.",
            hint="Give `lora` the rank, alpha, kind and target_modules of its adapter_config.json.",
        )
    set_peft_model_state_dict(model, weights)
    return info.digest
