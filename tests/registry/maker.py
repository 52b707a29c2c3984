"""Bases and adapters of a few hundred bytes, written without torch; and malformed files."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]
HIDDEN, LAYERS = 8, 2
SHAPES = {"q_proj": (HIDDEN, HIDDEN), "v_proj": (4, HIDDEN), "down_proj": (HIDDEN, 16)}
_GROUPS = {"q_proj": "self_attn", "v_proj": "self_attn", "down_proj": "mlp"}


def write_safetensors(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    """Writes a file with a valid header."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [position, position + len(data)],
        }
        position += len(data)
    return write_raw(path, json.dumps(header).encode(), b"".join(data for _, _, data in tensors.values()))


def write_raw(path: Path, header: bytes, data: bytes = b"", *, length: int | None = None) -> Path:
    """Writes any header, with its own length or another one."""
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def values(*shape: int, seed: int = 0, dtype: str = "F32") -> tuple[str, tuple[int, ...], bytes]:
    """Random numbers in any of four dtypes."""
    numbers = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    match dtype:
        case "BF16":
            data = (numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        case "F16":
            data = numbers.astype(np.float16).tobytes()
        case "F64":
            data = numbers.astype(np.float64).tobytes()
        case _:
            data = numbers.tobytes()
    return dtype, shape, data


def module_names(targets: tuple[str, ...] = ("q_proj", "v_proj"), layers: int = LAYERS) -> list[str]:
    """The modules of the base that some targets mean."""
    return [
        f"model.layers.{layer}.{_GROUPS[target]}.{target}" for layer in range(layers) for target in targets
    ]


def make_base(folder: Path, *, seed: int = 0, layers: int = LAYERS, **config: Any) -> Path:
    """A folder that looks like a Llama."""
    folder.mkdir(parents=True)
    tensors: Tensors = {"model.embed_tokens.weight": values(32, HIDDEN, seed=seed)}
    for name in module_names(tuple(SHAPES), layers):
        tensors[f"{name}.weight"] = values(*SHAPES[name.rpartition(".")[2]], seed=seed)
    tensors["model.norm.weight"] = values(HIDDEN, seed=seed)
    write_safetensors(folder / "model.safetensors", tensors)
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 32,
        "hidden_size": HIDDEN,
        "num_hidden_layers": layers,
        "intermediate_size": 16,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def adapter_tensors(
    targets: tuple[str, ...] = ("q_proj", "v_proj"),
    *,
    r: int = 2,
    seed: int = 0,
    dtype: str = "F32",
    dora: bool = False,
    layers: int = LAYERS,
) -> Tensors:
    """The tensors of a LoRA, named as PEFT names them."""
    tensors: Tensors = {}
    for name in module_names(targets, layers):
        out_features, in_features = SHAPES[name.rpartition(".")[2]]
        prefix = f"base_model.model.{name}"
        tensors[f"{prefix}.lora_A.weight"] = values(r, in_features, seed=seed, dtype=dtype)
        tensors[f"{prefix}.lora_B.weight"] = values(out_features, r, seed=seed + 1, dtype=dtype)
        if dora:
            tensors[f"{prefix}.lora_magnitude_vector"] = values(out_features, seed=seed, dtype=dtype)
    return tensors


def make_adapter(
    folder: Path,
    *,
    r: int = 2,
    seed: int = 0,
    dtype: str = "F32",
    targets: tuple[str, ...] = ("q_proj", "v_proj"),
    tensors: Tensors | None = None,
    **config: Any,
) -> Path:
    """A folder as PEFT writes it; `config` overrides fields of `adapter_config.json`."""
    folder.mkdir(parents=True)
    if tensors is None:
        tensors = adapter_tensors(targets, r=r, seed=seed, dtype=dtype, dora=bool(config.get("use_dora")))
    write_safetensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "example/tiny-llama",
        "r": r,
        "lora_alpha": 4,
        "target_modules": list(targets),
        "rank_pattern": {},
        "modules_to_save": None,
        "init_lora_weights": True,
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def content(root: Path) -> dict[str, bytes]:
    """Every file of a folder that belongs to the registry, hidden ones apart."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
    }
