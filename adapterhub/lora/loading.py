"""From an adapter's folder to the changes that it makes, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from adapterhub.base.quantized_weights import dequantize_module_weight
from adapterhub.errors import AdapterHubError, AdapterIncompatibleError, AdapterInvalidError
from adapterhub.lora.blending.methods import concatenate
from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.request import LoraRequest
from adapterhub.peft_format.checks import check_fit, check_shapes
from adapterhub.peft_format.config import (
    WEIGHTS_FILE,
    AdapterConfig,
    LoraParameter,
    LoraSettings,
    parse_tensor_name,
)
from adapterhub.peft_format.safetensors_header import TensorInfo, read_header

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_source(
    source: LoraRequest, model: Any, shapes: Mapping[str, tuple[int, int]], *, dtype: torch.dtype
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
    settings, header = AdapterConfig.read(folder).settings, read_header(folder / WEIGHTS_FILE)
    # The registry has checked all this, but not against this base, and files may have changed since.
    check_fit(check_shapes(settings, header), shapes)
    # DoRA divides by a norm of the factors, which must not have been rounded by then.
    modules = _read(folder, header, settings, torch.float32 if settings.use_dora else dtype)
    for module in modules:
        if module not in shapes:
            raise AdapterIncompatibleError(
                f"The adapter calls a layer {module!r}, which the loaded base calls otherwise.",
                hint="It was trained on the inner model; train it on the causal language model.",
            )
    device = model.device
    deltas = {module: _delta(model, module, parts, device) for module, parts in modules.items()}
    return {module: delta.to(dtype) for module, delta in deltas.items()} if settings.use_dora else deltas


def read_deltas(folder: Path) -> dict[str, LoraDelta]:
    """Reads an adapter without a base, in float32 on the CPU.

    Args:
        folder: As in `load_deltas`.

    Raises:
        AdapterInvalidError: The files are damaged.
        AdapterIncompatibleError: It is a kind of adapter that cannot be served, or uses DoRA: what that changes
            depends on the base's weights.
    """
    settings, header = AdapterConfig.read(folder).settings, read_header(folder / WEIGHTS_FILE)
    check_shapes(settings, header)
    if settings.use_dora:
        raise AdapterIncompatibleError(
            "An adapter with DoRA cannot be blended into a stored one: its magnitudes belong to its own matrices "
            "and to the base's weights.",
            hint="Ask for the blend in the request, adapter='name:0.7+other:0.3'; there it is exact.",
        )
    return {
        module: LoraDelta(parts["lora_A"], parts["lora_B"])
        for module, parts in _read(folder, header, settings, torch.float32).items()
    }


def _load_part(part: LoraRequest, model: Any, shapes: Mapping[str, tuple[int, int]]) -> dict[str, LoraDelta]:
    try:
        return load_source(part, model, shapes, dtype=torch.float32)
    except AdapterHubError as error:
        raise type(error)(f"Its part {part.name}: {error.message}", hint=error.hint) from error


def _read(
    folder: Path, header: Mapping[str, TensorInfo], settings: LoraSettings, dtype: torch.dtype
) -> dict[str, dict[LoraParameter, torch.Tensor]]:
    """An adapter's tensors, module by module, in one piece of memory of their own; lora_B is scaled.

    lora_B lies there column by column, as banks have it, so that filling a slot is plain copying.
    """
    memory = torch.empty(sum(math.prod(info.shape) for info in header.values()), dtype=dtype)
    modules: dict[str, dict[LoraParameter, torch.Tensor]] = {}
    place = 0
    for name, tensor in _tensors(folder / WEIGHTS_FILE, header):
        module, part = parse_tensor_name(name)
        if part == "lora_B":
            kept = memory.as_strided(tensor.shape, (1, len(tensor)), place)
            torch.mul(tensor.float(), settings.scaling(module), out=kept)
        else:
            kept = memory.as_strided(tensor.shape, tensor.stride(), place).copy_(tensor)
        modules.setdefault(module, {})[part] = kept
        place += tensor.numel()
    return modules


def _tensors(path: Path, header: Mapping[str, TensorInfo]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor of a file, in memory that the next one overwrites.

    The file is not mapped: what is kept must not change, or vanish, with it.
    """
    memory = memoryview(bytearray(max(info.end - info.start for info in header.values())))
    with path.open("rb", buffering=0) as file:
        file.seek(min(info.start for info in header.values()))
        for name, info in header.items():  # in the order of the bytes, without holes
            data = memory[: info.end - info.start]
            if file.readinto(data) < len(data):
                raise AdapterInvalidError(f"{path.name} became shorter while it was read.")
            yield name, torch.frombuffer(data, dtype=_DTYPES[info.dtype]).view(info.shape)


def _delta(
    model: Any, module: str, parts: Mapping[LoraParameter, torch.Tensor], device: torch.device
) -> LoraDelta:
    a, b = parts["lora_A"].to(device), parts["lora_B"].to(device)
    if "lora_magnitude_vector" not in parts:
        return LoraDelta(a, b)
    layer = model.get_submodule(module)
    norm = (dequantize_module_weight(getattr(layer, "base", layer)) + b @ a).norm(dim=1)
    return LoraDelta(a, b, parts["lora_magnitude_vector"].to(device) / norm)
