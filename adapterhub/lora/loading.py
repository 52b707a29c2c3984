"""Loads an adapter's folder as one `ModuleDelta` for each module that it changes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from adapterhub.base.fit import check_fit
from adapterhub.base.linear_layers import LinearLayers
from adapterhub.base.parameters import ExpertPiece
from adapterhub.base.quantized_weights import dequantize_module_weight
from adapterhub.errors import AdapterHubError, AdapterIncompatibleError
from adapterhub.lora.blending.methods import weighted_sum
from adapterhub.lora.delta import LoraDelta, ModuleDelta
from adapterhub.lora.file_tensors import read_tensors
from adapterhub.lora.further_loading import FurtherReader
from adapterhub.lora.layers import base_layer_of
from adapterhub.lora.parameter_delta import ExpertFactors, ParameterDelta
from adapterhub.lora.request import BlendedLoraRequest, LoraRequest, StoredLoraRequest
from adapterhub.peft_format import checks
from adapterhub.peft_format.checks import check_shapes
from adapterhub.peft_format.config import (
    WEIGHTS_FILE,
    AdapterConfig,
    LoraParameter,
    LoraSettings,
    copied_weights,
    further_names,
    parse_tensor_name,
)
from adapterhub.peft_format.further_weights import FurtherWeights
from adapterhub.peft_format.safetensors_header import TensorInfo, read_header

_Pieces = list[tuple[ExpertPiece, torch.Tensor, torch.Tensor]]


def load_adapter_deltas(
    request: LoraRequest, model: Any, layers: LinearLayers, *, dtype: torch.dtype
) -> dict[str, ModuleDelta]:
    """Loads an adapter, or a blend as the exact sum of its parts, for a loaded base.

    Args:
        request: The adapter.
        model: As in `load_folder_deltas`.
        layers: As in `load_folder_deltas`.
        dtype: As in `load_folder_deltas`; sums are computed in float32.

    Returns:
        Module name in the model -> change.

    Raises:
        AdapterHubError: As `load_folder_deltas`, naming the part of a blend that cannot be loaded.
    """
    match request:
        case StoredLoraRequest(folder=folder):
            return load_folder_deltas(folder, model, layers, dtype=dtype)
        case BlendedLoraRequest(parts=parts):
            summands: dict[str, list[tuple[ModuleDelta, float]]] = {}
            for part, weight in parts:
                for module, delta in _load_part(part, model, layers).items():
                    summands.setdefault(module, []).append((delta, weight))
            return {
                module: weighted_sum(module, changes, _base_module(model, module)).to(dtype)
                for module, changes in summands.items()
            }
    raise TypeError(f"A {type(request).__name__} is neither stored nor a blend.")


def adapter_rank(request: LoraRequest) -> int:
    """The highest rank of an adapter's layers, for a blend that of the sum, from headers and configs alone.

    Raises:
        AdapterInvalidError: The files are damaged.
        AdapterIncompatibleError: The kind of adapter cannot be served.
    """
    return max(_layer_ranks(request).values(), default=0)


def slot_weights(request: LoraRequest) -> int:
    """The number of weights that an adapter holds in a slot beside LoRA on linear layers; of a blend that of all parts.

    Raises:
        AdapterInvalidError: The files are damaged.
        AdapterIncompatibleError: The kind of adapter cannot be served.
    """
    match request:
        case StoredLoraRequest(folder=folder):
            settings, header = AdapterConfig.read(folder).settings, _read_header(folder)
            return checks.slot_weights(FurtherWeights.of(settings, header), check_shapes(settings, header))
        case BlendedLoraRequest(parts=parts):
            return sum(slot_weights(part) for part, _ in parts)
    raise TypeError(f"A {type(request).__name__} is neither stored nor a blend.")


def _layer_ranks(request: LoraRequest) -> Counter[str]:
    match request:
        case StoredLoraRequest(folder=folder):
            settings, header = AdapterConfig.read(folder).settings, _read_header(folder)
            shapes, further = check_shapes(settings, header), FurtherWeights.of(settings, header)
            ranks = {module: shape.rank for module, shape in further.embeddings.items()}
            return Counter(ranks | {module: shape.rank for module, shape in shapes.items()})
        case BlendedLoraRequest(parts=parts):
            return sum((_layer_ranks(part) for part, _ in parts), Counter())
    raise TypeError(f"A {type(request).__name__} is neither stored nor a blend.")


def load_folder_deltas(
    folder: Path, model: Any, layers: LinearLayers, *, dtype: torch.dtype
) -> dict[str, ModuleDelta]:
    """Loads a stored adapter for a loaded base.

    Args:
        folder: Holds PEFT's `adapter_config.json` and `adapter_model.safetensors`.
        model: The base; DoRA needs the norms of its weights (arXiv 2402.09353). None where it is not of transformers.
        layers: The base's linear layers, from before any of them was wrapped.
        dtype: The dtype of the result.

    Returns:
        Module name in the model -> change, in host memory wherever the base is; without layers that no text passes.

    Raises:
        AdapterInvalidError: The files are damaged.
        AdapterIncompatibleError: The kind of adapter cannot be served, or not without `model`, or it does not fit the
            base.
    """
    settings, header = AdapterConfig.read(folder).settings, _read_header(folder)
    if settings.use_dora and model is None:
        raise AdapterIncompatibleError(
            "It uses DoRA, which needs the norms of the base's weights; this engine does not have them.",
            hint="Serve it with engine='transformers', or merge it into the base.",
        )
    # The registry checked the files when it stored them, but not against this base, and they may have changed since.
    names = check_fit(check_shapes(settings, header), layers, settings)
    # DoRA divides by a norm that depends on the factors, so they are rounded only afterwards.
    scalings = {module: settings.scaling(_pattern_name(module, layers, settings)) for module in names}
    modules = _read_tensors(folder, header, scalings, torch.float32 if settings.use_dora else dtype)

    def base_weight(module: str) -> torch.Tensor:
        return dequantize_module_weight(_base_module(model, module))

    deltas: dict[str, ModuleDelta] = {
        names[module]: _delta(base_weight, names[module], parts)
        for module, parts in modules.items()
        if names[module] in layers.shapes
    }
    if settings.use_dora:
        deltas = {module: delta.to(dtype) for module, delta in deltas.items()}
    further = FurtherReader(folder, header, settings).read(layers, names, dtype)
    return {**deltas, **_parameter_deltas(modules, names, layers), **further}


def read_deltas_without_base(
    folder: Path,
    layers: LinearLayers | None = None,
    base_weight: Callable[[str], torch.Tensor] | None = None,
) -> dict[str, LoraDelta]:
    """Loads a stored adapter without a loaded base, in float32 on the CPU.

    Args:
        folder: As in `load_folder_deltas`.
        layers: The base's linear layers, if they are known.
        base_weight: From a layer's name in the model to its weight in the base, for DoRA; needs `layers`.

    Returns:
        Module name -> change; the names are the model's if `layers` are given, else the adapter's.

    Raises:
        AdapterInvalidError: The files are damaged.
        AdapterIncompatibleError: The kind of adapter cannot be served, it does not fit the base, or it uses DoRA,
            whose change depends on the base's weights.
    """
    settings, header = AdapterConfig.read(folder).settings, _read_header(folder)
    shapes = check_shapes(settings, header)
    names = check_fit(shapes, layers, settings) if layers else {module: module for module in shapes}
    if settings.target_parameters or (layers and _parameters_among(names.values(), layers)):
        raise AdapterIncompatibleError(
            "An adapter of a mixture's experts cannot be rewritten, nor blended into a stored one.",
            hint="Ask for the blend in the request, adapter='name:0.7+other:0.3'; there it is exact.",
        )
    if settings.use_dora and base_weight is None:
        raise AdapterIncompatibleError(
            "An adapter with DoRA cannot be blended into a stored one: its magnitudes belong to its own matrices "
            "and to the base's weights.",
            hint="Ask for the blend in the request, adapter='name:0.7+other:0.3'; there it is exact.",
        )
    scalings = {module: settings.scaling(module) for module in shapes}
    modules = _read_tensors(folder, header, scalings, torch.float32)
    beside = layers.beside if layers else ()
    deltas = {
        names[module]: _delta(base_weight, names[module], parts)
        for module, parts in modules.items()
        if names[module] not in beside
    }
    return {**deltas, **FurtherReader(folder, header, settings).read_embeddings(layers, names)}


def _base_module(model: Any, name: str) -> Any:
    """The base's module; None where the base is not a model of transformers."""
    return base_layer_of(model.get_submodule(name)) if model is not None else None


def _read_header(folder: Path) -> dict[str, TensorInfo]:
    return read_header(folder / WEIGHTS_FILE, follow_links=False)  # a registry has no links


def _load_part(part: LoraRequest, model: Any, layers: LinearLayers) -> dict[str, ModuleDelta]:
    try:
        return load_adapter_deltas(part, model, layers, dtype=torch.float32)
    except AdapterHubError as error:
        raise type(error)(f"Its part {part.name}: {error.message}", hint=error.hint) from error


def _read_tensors(
    folder: Path, header: Mapping[str, TensorInfo], scalings: Mapping[str, float], dtype: torch.dtype
) -> dict[str, dict[LoraParameter, torch.Tensor]]:
    """An adapter's tensors by module, in one block of memory; lora_B is multiplied by the scaling.

    lora_B is stored column-major, as in `StackedLoraWeights`, so that writing it into a slot is a plain copy.
    """
    others = {*copied_weights(header).values(), *further_names(header)}
    header = {name: info for name, info in header.items() if name not in others}
    memory = torch.empty(sum(math.prod(info.shape) for info in header.values()), dtype=dtype)
    modules: dict[str, dict[LoraParameter, torch.Tensor]] = {}
    offset = 0
    for name, tensor in read_tensors(folder / WEIGHTS_FILE, header):
        module, part = parse_tensor_name(name)
        if part == "lora_B":
            copied = memory.as_strided(tensor.shape, (1, len(tensor)), offset)
            torch.mul(tensor.float(), scalings[module], out=copied)
        else:
            copied = memory.as_strided(tensor.shape, tensor.stride(), offset).copy_(tensor)
        modules.setdefault(module, {})[part] = copied
        offset += tensor.numel()
    return modules


def _pattern_name(module: str, layers: LinearLayers, settings: LoraSettings) -> str:
    """The name that the patterns of an adapter's settings have to match."""
    found = layers.find_adapted(module, settings)
    return found[1] if found else module


def _parameters_among(names: Iterable[str], layers: LinearLayers) -> bool:
    return any(name in layers.parameter_shapes or ExpertPiece.of_key(name) for name in names)


def _parameter_deltas(
    modules: Mapping[str, Mapping[LoraParameter, torch.Tensor]],
    names: Mapping[str, str],
    layers: LinearLayers,
) -> dict[str, ModuleDelta]:
    """The changes of bare parameters, by the module that holds them."""
    factors: dict[str, ExpertFactors] = {}
    single: dict[str, _Pieces] = {}
    for module, name in names.items():
        if shape := layers.parameter_shapes.get(name):
            parts = modules[module]
            factors[name] = ExpertFactors.of_peft(parts["lora_A"], parts["lora_B"], shape.experts)
        elif piece := ExpertPiece.of_key(name):
            parts = modules[module]
            single.setdefault(piece.parameter, []).append((piece, parts["lora_A"], parts["lora_B"]))
    _check_joined(single, layers)
    for name, pieces in single.items():
        factors[name] = ExpertFactors.of_single(layers.parameter_shapes[name], pieces)
    deltas: dict[str, dict[str, ExpertFactors]] = {}
    for name, of_parameter in factors.items():
        owner, _, leaf = name.rpartition(".")
        deltas.setdefault(owner, {})[leaf] = of_parameter
    return {owner: ParameterDelta(of_module) for owner, of_module in deltas.items()}


def _check_joined(single: Mapping[str, _Pieces], layers: LinearLayers) -> None:
    """A few experts of a high rank make a small file, and joined with all others much memory."""
    size = 0
    for name, pieces in single.items():
        shape, (piece, a, _) = layers.parameter_shapes[name], max(pieces, key=lambda one: len(one[1]))
        rows = piece.parts * len(a)
        size += shape.experts * rows * (shape.in_features + shape.out_features) * a.itemsize
    if size > checks.MAX_WEIGHTS_BYTES:
        raise AdapterIncompatibleError(
            f"The weights of single experts take {size:,} bytes once they are joined; at most "
            f"{checks.MAX_WEIGHTS_BYTES:,} are accepted.",
            hint="Merge it into the base with PEFT's merge_and_unload, or train all experts with a lower rank.",
        )


def _delta(
    base_weight: Callable[[str], torch.Tensor] | None,
    module: str,
    parts: Mapping[LoraParameter, torch.Tensor],
) -> LoraDelta:
    a, b = parts["lora_A"], parts["lora_B"]
    if base_weight is None or "lora_magnitude_vector" not in parts:
        return LoraDelta(a, b)
    weight = base_weight(module)
    norm = (weight + b.to(weight.device) @ a.to(weight.device)).norm(dim=1)
    return LoraDelta(a, b, parts["lora_magnitude_vector"] / norm.cpu())
