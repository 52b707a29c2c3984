"""Saves an adapter as a PEFT folder: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.module_deltas import EmbeddingDelta
from adapterhub.peft_format.config import CONFIG_FILE, WEIGHTS_FILE

_LINEAR = ("lora_A.weight", "lora_B.weight")
_EMBEDDING = ("lora_embedding_A", "lora_embedding_B")
_BASE_SETTINGS = ("base_model_name_or_path", "revision", "fan_in_fan_out")


def save_adapter(
    folder: Path,
    deltas: Mapping[str, LoraDelta],
    base_settings: Mapping[str, Any],
    base_shapes: Mapping[str, tuple[int, int]],
) -> None:
    """Saves an adapter's changes, with `lora_alpha` equal to `r`, so that PEFT's scaling is 1.

    Args:
        folder: An existing folder.
        deltas: Module name -> change, without DoRA.
        base_settings: An `adapter_config.json` for the same base; what it has about the base is copied.
        base_shapes: The base's linear layers, module name -> (out_features, in_features). They allow short names in
            `target_modules` where all layers of a kind are targeted; may be empty.

    Raises:
        OSError: The files cannot be written.
    """
    ranks = {module: len(delta.a) for module, delta in deltas.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    pattern = _rank_pattern({module: other for module, other in ranks.items() if other != rank}, ranks)
    config = {
        **{name: base_settings[name] for name in _BASE_SETTINGS if base_settings.get(name) is not None},
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": sorted(_target_modules(deltas, base_shapes)),
    }
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {}
    for module, delta in deltas.items():
        a, b = _EMBEDDING if isinstance(delta, EmbeddingDelta) else _LINEAR
        tensors[f"base_model.model.{module}.{a}"] = delta.a.contiguous()
        tensors[f"base_model.model.{module}.{b}"] = delta.b.contiguous()
    try:
        save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    except SafetensorError as error:  # its only failure on valid tensors is that of the file system
        raise OSError(str(error)) from error


def _rank_pattern(exceptions: Mapping[str, int], ranks: Mapping[str, int]) -> dict[str, int]:
    """PEFT's `rank_pattern`: one entry for a kind of layer where all of that kind have one rank, else one a layer."""
    kinds: dict[str, set[int]] = {}
    for module, rank in ranks.items():
        kinds.setdefault(_kind(module), set()).add(rank)
    return {
        _kind(module) if len(kinds[_kind(module)]) == 1 else module.replace(".", r"\."): rank
        for module, rank in exceptions.items()
    }


def _target_modules(modules: Mapping[str, Any], base_shapes: Mapping[str, Any]) -> set[str]:
    """PEFT's `target_modules`: a kind, such as `q_proj`, where every layer of that kind in the base is targeted."""
    in_base, targeted = Counter(map(_kind, base_shapes)), Counter(map(_kind, modules))
    return {
        _kind(module) if targeted[_kind(module)] == in_base[_kind(module)] else module for module in modules
    }


def _kind(module: str) -> str:
    return module.rpartition(".")[2]
