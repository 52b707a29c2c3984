"""The linear layers of plain decoders, computed from `config.json` alone.

`LinearLayers` builds any model, for which torch and transformers have to be imported: seconds. The models here have the
same layers under the same names in their files, in transformers' model and in adapters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CONFIG = "config.json"
# `model_type` -> whether a head's size follows from the others where the config does not give it.
_DERIVES_HEAD_SIZE = {"llama": True, "mistral": True, "qwen2": True, "qwen3": False}
_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)


def plain_decoder_shapes(folder: Path) -> dict[str, tuple[int, int]] | None:
    """The linear layers of a base on disk, as `LinearLayers.shapes` has them.

    Args:
        folder: Holds `config.json`.

    Returns:
        Module name -> (out_features, in_features); None if only transformers can tell: for another model, and for a
        config that cannot be read or leaves sizes to transformers' defaults.
    """
    try:
        config = json.loads((folder / _CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(config, dict) or "auto_map" in config or not (sizes := _sizes(config)):
        return None
    count, hidden, inner, queries, keys, vocabulary = sizes
    layer = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    names = {f"model.layers.{n}.{name}": shape for n in range(count) for name, shape in layer.items()}
    return {**names, "lm_head": (vocabulary, hidden)}


def _sizes(config: Mapping[str, Any]) -> tuple[int, int, int, int, int, int] | None:
    """The number of layers, and the widths of the residual stream, the MLP, queries, keys and the vocabulary."""
    values: list[Any] = [config.get(name) for name in _SIZES]
    derives = _DERIVES_HEAD_SIZE.get(str(config.get("model_type")))
    if derives is None or not all(_is_size(value) for value in values):
        return None
    count, hidden, inner, heads, key_heads, vocabulary = values
    size = config.get("head_dim")
    if "head_dim" not in config and derives and hidden % heads == 0:
        size = hidden // heads
    return (count, hidden, inner, heads * size, key_heads * size, vocabulary) if _is_size(size) else None


def _is_size(value: object) -> bool:
    return type(value) is int and value > 0
