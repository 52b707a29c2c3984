"""Exporting an adapter or a blend as an adapter folder of mlx-lm, for Apple silicon.

mlx-lm 0.32 (mlx_lm/tuner) reads `adapters.safetensors` with `lora_a` of shape
(in_features, r), `lora_b` of shape (r, out_features) and DoRA's `m` under the names of its model, and one rank and one
scale for all layers in `adapter_config.json`. Its models have transformers' names but for the prefix of some.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from adapterhub._files import new_folder, os_errors_as
from adapterhub.base.linear_layers import LinearLayers
from adapterhub.errors import AdapterIncompatibleError, ExportError
from adapterhub.export.adapter_card import adapter_card
from adapterhub.export.free_folder import free_folder
from adapterhub.export.licence_files import copy_licences
from adapterhub.export.lora_form import LoraForm
from adapterhub.export.peft_folder import PeftExport, export_peft
from adapterhub.lora.blending.resolving import resolve_adapter
from adapterhub.peft_format.config import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterConfig,
    parse_tensor_name,
    parse_tensors,
)
from adapterhub.peft_format.safetensors_header import read_header
from adapterhub.registry.local_base import local_base
from adapterhub.registry.model_card import MODEL_CARD_FILE
from adapterhub.registry.store import AdapterRegistry

MLX_WEIGHTS_FILE = "adapters.safetensors"

_PREFIXES = {  # in transformers -> in mlx-lm
    "model.language_model.": "language_model.model.",
    "transformer.h.": "model.h.",
}
_MODULE = re.compile(r"(?:language_model\.)?model\.(?:layers|h)\.\d+\.(?P<in_layer>.+)|(?P<head>lm_head)")
_PARTS = {"lora_A": "lora_a", "lora_B": "lora_b", "lora_magnitude_vector": "m"}


def export_mlx(
    registry: AdapterRegistry,
    adapter: str | Mapping[str, float],
    out: str | Path,
    form: LoraForm | None = None,
    *,
    base_folder: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PeftExport:
    """Writes an adapter, or the exact sum of a blend, as a folder for `mlx_lm.generate --adapter-path`.

    Args:
        registry: As in `export_peft`.
        adapter: As in `export_peft`.
        out: As in `export_peft`.
        form: As in `export_peft`; ranks and scalings are always made one. DoRA is kept unless it says otherwise.
        base_folder: As in `export_peft`.
        progress: As in `export_peft`.

    Returns:
        As `export_peft`; the size is that of mlx-lm's file, the digest that of the same adapter in PEFT's format.

    Raises:
        AdapterHubError: As `export_peft`; also `AdapterIncompatibleError` for a layer that mlx-lm has no name for.
    """
    out = free_folder(out)
    plain = replace(form or LoraForm(), plain=True)
    with (
        os_errors_as(ExportError, f"The adapter could not be exported to {str(out)!r}"),
        new_folder(out) as folder,
    ):
        source = folder / "peft"
        report = export_peft(registry, adapter, source, plain, base_folder=base_folder, progress=progress)
        resolved = resolve_adapter(report.adapter, registry.resolve)
        size = _convert(source, folder)
        _refuse_tied_head(source, Path(base_folder) if base_folder else local_base(resolved.main_card.base))
        copy_licences(source, folder)
        text = adapter_card(resolved, report.details, library="mlx")
        (folder / MODEL_CARD_FILE).write_text(text, encoding="utf-8")
        shutil.rmtree(source)
    return replace(report, size_bytes=size)


def _convert(source: Path, folder: Path) -> int:
    """Writes mlx-lm's two files, and returns the size of the weights."""
    config = AdapterConfig.read(source)
    tensors, keys = {}, set()
    for name, tensor in load_file(source / WEIGHTS_FILE).items():
        module, part = parse_tensor_name(name)
        own, key = _mlx_name(module)
        tensors[f"{own}.{_PARTS[part]}"] = tensor.T.contiguous() if tensor.dim() == 2 else tensor
        keys.add(key)
    settings = config.settings
    mlx_config = {
        "model": config.base_name,
        "fine_tune_type": "dora" if settings.use_dora else "lora",
        "num_layers": -1,  # all; those without weights stay as they are, for their lora_b is zero
        "lora_parameters": {
            "rank": settings.r,
            "scale": settings.lora_alpha / settings.r,
            "dropout": 0.0,
            "keys": sorted(keys),
        },
    }
    (folder / CONFIG_FILE).write_text(json.dumps(mlx_config, indent=2) + "\n", encoding="utf-8")
    try:
        save_file(tensors, folder / MLX_WEIGHTS_FILE, metadata={"format": "mlx"})
    except SafetensorError as error:  # its only failure on valid tensors is that of the file system
        raise OSError(str(error)) from error
    return (folder / MLX_WEIGHTS_FILE).stat().st_size


def _refuse_tied_head(adapter: Path, base: Path | None) -> None:
    """Refuses LoRA on an output layer that shares the embedding's weights: mlx-lm's model has no such layer then."""
    modules = parse_tensors(read_header(adapter / WEIGHTS_FILE))
    if "lm_head" not in modules or base is None:
        return
    layers = LinearLayers.of_folder(base)
    if layers and "lm_head.weight" in layers.tied:
        raise AdapterIncompatibleError(
            "The adapter changes the output layer, which mlx-lm does not have apart from the embedding in this base.",
            hint="Merge the adapter into its base with `adapterhub merge`; mlx-lm reads the merged model.",
        )


def _mlx_name(module: str) -> tuple[str, str]:
    """The name of a layer in mlx-lm's model, and the key that asks for it in `lora_parameters`."""
    own = next(
        (new + module.removeprefix(old) for old, new in _PREFIXES.items() if module.startswith(old)), module
    )
    match = _MODULE.fullmatch(own)
    if match is None:
        raise AdapterIncompatibleError(
            f"mlx-lm's name of the layer {module!r} is not known.",
            hint="Merge the adapter into its base with `adapterhub merge`; mlx-lm reads the merged model.",
        )
    return own, match["in_layer"] or own
