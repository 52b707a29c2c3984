"""Training that starts from the weights of an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from adapterhub.base.copied_weights import check_copied_weights
from adapterhub.base.fit import check_fit
from adapterhub.base.linear_layers import LinearLayers
from adapterhub.errors import AdapterIncompatibleError, ConfigError
from adapterhub.peft_format.checks import inspect_adapter
from adapterhub.peft_format.config import WEIGHTS_FILE, LoraSettings, parse_tensor_name
from adapterhub.training.config import LoraOptions


def load_initial_weights(
    folder: Path, model: Any, lora: LoraOptions, base: Path, layers: LinearLayers
) -> str:
    """Loads an adapter's weights into the LoRA layers of a `PeftModel`.

    Args:
        folder: The adapter's PEFT folder.
        model: The `PeftModel` to train.
        lora: The LoRA settings of the model.
        base: The base's folder.
        layers: The base's linear layers.

    Returns:
        The adapter's digest.

    Raises:
        AdapterInvalidError: The adapter's files are damaged.
        AdapterIncompatibleError: The adapter is of a kind that cannot be trained, or does not fit the base.
        ConfigError: The adapter's LoRA settings or shapes are not those of the run.
    """
    settings = LoraSettings(r=lora.r, lora_alpha=lora.alpha, use_rslora=lora.rslora, use_dora=lora.dora)
    info = inspect_adapter(folder)
    if info.further:
        raise AdapterIncompatibleError(
            f"The initial adapter {folder.name!r} changes {info.further.names[0]!r} by more than LoRA on linear "
            "layers, which is not trained here.",
            hint="Go on training it with PEFT, or start from another adapter.",
        )
    names = check_fit(info.modules, layers, info.config.settings)
    check_copied_weights(folder, base, layers)  # they are not loaded
    weights = _under_the_models_names(load_file(folder / WEIGHTS_FILE), names)
    new = get_peft_model_state_dict(model)
    shapes = [{name: tensor.shape for name, tensor in part.items()} for part in (new, weights)]
    if settings.canonical() != info.config.settings.canonical() or shapes[0] != shapes[1]:
        raise ConfigError(
            f"The initial adapter {folder.name!r} has another shape than the run's.",
            hint="Give `lora` the rank, alpha, kind and target_modules of its adapter_config.json.",
        )
    set_peft_model_state_dict(model, weights)
    return info.digest


def _under_the_models_names(weights: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    modules = {name: parse_tensor_name(name)[0] for name in weights if ".lora_" in name}
    return {name.replace(module, names[module], 1): weights[name] for name, module in modules.items()}
