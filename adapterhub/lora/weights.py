"""From an adapter's folder to the changes that it makes, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from adapterhub.errors import AdapterIncompatibleError, AdapterInvalidError
from adapterhub.lora.layers import LoraDelta
from adapterhub.models import dense_weight
from adapterhub.registry.peft_format import WEIGHTS_FILE, AdapterConfig, LoraSettings, Part, parse_tensor_name


def load_deltas(
    folder: Path, model: Any, shapes: Mapping[str, tuple[int, int]], *, name: str, dtype: torch.dtype
) -> dict[str, LoraDelta]:
    """Reads an adapter and fits it to a loaded base.

    Args:
        folder: Holds PEFT's `adapter_config.json` and `adapter_model.safetensors`.
        model: The base, for DoRA's weight norms.
        shapes: The base's layers: module name -> (out_features, in_features).
        name: What to call the adapter in messages.
        dtype: The dtype to compute the change in.

    Raises:
        AdapterInvalidError: The files cannot be read.
        AdapterIncompatibleError: A matrix has no layer of its shape in the base.
    """
    settings = AdapterConfig.read(folder).settings
    modules = _read_modules(folder / WEIGHTS_FILE, name)
    deltas = {}
    for module, parts in modules.items():
        _check_fit(name, module, parts, shapes, settings)
        deltas[module] = _delta(model, module, parts, settings, dtype)
    return deltas


def _read_modules(path: Path, name: str) -> dict[str, dict[Part, torch.Tensor]]:
    try:
        tensors = load_file(path)
    except Exception as error:  # safetensors raises its own and several built-in kinds
        raise AdapterInvalidError(
            f"The weights of adapter {name!r} cannot be read: {error}",
            hint="`adapterhub verify` checks every adapter of the registry.",
        ) from error
    modules: dict[str, dict[Part, torch.Tensor]] = {}
    for tensor_name, tensor in tensors.items():
        module, part = parse_tensor_name(tensor_name)
        modules.setdefault(module, {})[part] = tensor
    return modules


def _check_fit(
    name: str,
    module: str,
    parts: Mapping[Part, torch.Tensor],
    shapes: Mapping[str, tuple[int, int]],
    settings: LoraSettings,
) -> None:
    if module not in shapes:
        raise AdapterIncompatibleError(
            f"Adapter {name!r} changes {module!r}, which the base does not have.",
            hint="It was made for another architecture; `adapterhub show` names the base it was trained on.",
        )
    out_features, in_features = shapes[module]
    rank = settings.rank(module)
    wanted: dict[Part, tuple[int, ...]] = {"lora_A": (rank, in_features), "lora_B": (out_features, rank)}
    if settings.use_dora:
        wanted["lora_magnitude_vector"] = (out_features,)
    found = {part: tuple(tensor.shape) for part, tensor in parts.items()}
    if found != wanted:
        raise AdapterIncompatibleError(
            f"Adapter {name!r} does not fit {module!r} of the base: it has {found}, and {wanted} would fit.",
            hint="It was made for another base or its config was changed.",
        )


def _delta(
    model: Any, module: str, parts: Mapping[Part, torch.Tensor], settings: LoraSettings, dtype: torch.dtype
) -> LoraDelta:
    layer = model.get_submodule(module)
    layer = getattr(layer, "base", layer)
    device = layer.weight.device
    a = parts["lora_A"].to(device, torch.float32)
    b = parts["lora_B"].to(device, torch.float32) * settings.scaling(module)
    scale = None
    if settings.use_dora:
        norm = (dense_weight(layer) + b @ a).norm(dim=1)
        scale = (parts["lora_magnitude_vector"].to(device, torch.float32) / norm).to(dtype)
    return LoraDelta(a.to(dtype), b.to(dtype), scale)
