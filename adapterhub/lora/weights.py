"""From an adapter's folder to the changes that it makes, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from adapterhub.errors import AdapterHubError, AdapterIncompatibleError
from adapterhub.lora.blend import concatenate
from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.source import AdapterSource
from adapterhub.models import dense_weight
from adapterhub.registry.checks import check_fit, check_shapes
from adapterhub.registry.peft_format import WEIGHTS_FILE, AdapterConfig, LoraSettings, Part, parse_tensor_name
from adapterhub.safetensors_header import read_header


def load_source(
    source: AdapterSource, model: Any, shapes: Mapping[str, tuple[int, int]], *, dtype: torch.dtype
) -> dict[str, LoraDelta]:
    """Reads an adapter or a blend and fits it to a loaded base; a blend is the exact sum of its parts.

    Args:
        source: What to read.
        model: As in `load_deltas`.
        shapes: As in `load_deltas`.
        dtype: As in `load_deltas`; sums are computed in float32.

    Raises:
        AdapterHubError: As `load_deltas`, naming the part of a blend that cannot be loaded.
    """
    if source.folder is not None:
        return load_deltas(source.folder, model, shapes, dtype=dtype)
    changes: dict[str, list[tuple[LoraDelta, float]]] = {}
    for part, weight in source.parts:
        for module, delta in _load_part(part, model, shapes).items():
            changes.setdefault(module, []).append((delta, weight))
    return {module: concatenate(together).to(dtype) for module, together in changes.items()}


def load_deltas(
    folder: Path, model: Any, shapes: Mapping[str, tuple[int, int]], *, dtype: torch.dtype
) -> dict[str, LoraDelta]:
    """Reads an adapter and fits it to a loaded base.

    Args:
        folder: Holds PEFT's `adapter_config.json` and `adapter_model.safetensors`.
        model: The base, for DoRA's weight norms.
        shapes: The base's layers: module name -> (out_features, in_features).
        dtype: The dtype to compute the change in.

    Returns:
        Module name -> change.

    Raises:
        AdapterInvalidError: The files are damaged.
        AdapterIncompatibleError: It is a kind of adapter that cannot be served, or does not fit the base.
    """
    settings = AdapterConfig.read(folder).settings
    # The registry has checked all this, but not against this base, and files may have changed since.
    check_fit(check_shapes(settings, read_header(folder / WEIGHTS_FILE)), shapes)
    modules = _read_tensors(folder)
    return {module: _delta(model, module, parts, settings, dtype) for module, parts in modules.items()}


def read_deltas(folder: Path) -> dict[str, LoraDelta]:
    """Reads an adapter without a base, in float32 on the CPU.

    Args:
        folder: As in `load_deltas`.

    Raises:
        AdapterInvalidError: The files are damaged.
        AdapterIncompatibleError: It is a kind of adapter that cannot be served, or uses DoRA: what that changes
            depends on the base's weights.
    """
    settings = AdapterConfig.read(folder).settings
    check_shapes(settings, read_header(folder / WEIGHTS_FILE))
    if settings.use_dora:
        raise AdapterIncompatibleError(
            "An adapter with DoRA cannot be blended into a stored one: its magnitudes belong to its own matrices "
            "and to the base's weights.",
            hint="Ask for the blend in the request, adapter='name:0.7+other:0.3'; there it is exact.",
        )
    return {
        module: LoraDelta(
            parts["lora_A"].to(torch.float32, copy=True), parts["lora_B"].float() * settings.scaling(module)
        )
        for module, parts in _read_tensors(folder).items()
    }


def _load_part(
    part: AdapterSource, model: Any, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, LoraDelta]:
    try:
        return load_source(part, model, shapes, dtype=torch.float32)
    except AdapterHubError as error:
        raise type(error)(f"Its part {part.name}: {error.message}", hint=error.hint) from error


def _read_tensors(folder: Path) -> dict[str, dict[Part, torch.Tensor]]:
    modules: dict[str, dict[Part, torch.Tensor]] = {}
    for name, tensor in load_file(folder / WEIGHTS_FILE).items():
        module, part = parse_tensor_name(name)
        modules.setdefault(module, {})[part] = tensor
    return modules


def _delta(
    model: Any, module: str, parts: Mapping[Part, torch.Tensor], settings: LoraSettings, dtype: torch.dtype
) -> LoraDelta:
    layer = _layer(model, module)
    device = layer.weight.device
    # A copy: safetensors maps the file, and what is kept must not change, or vanish, with it.
    a = parts["lora_A"].to(device, torch.float32, copy=True)
    b = parts["lora_B"].to(device, torch.float32) * settings.scaling(module)
    scale = None
    if settings.use_dora:
        norm = (dense_weight(layer) + b @ a).norm(dim=1)
        scale = (parts["lora_magnitude_vector"].to(device, torch.float32) / norm).to(dtype)
    return LoraDelta(a.to(dtype), b.to(dtype), scale)


def _layer(model: Any, module: str) -> Any:
    try:
        layer = model.get_submodule(module)
    except AttributeError as error:
        raise AdapterIncompatibleError(
            f"The adapter calls a layer {module!r}, which the loaded base calls otherwise.",
            hint="It was trained on the inner model; train it on the causal language model.",
        ) from error
    return getattr(layer, "base", layer)
