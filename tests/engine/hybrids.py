"""Tiny configurations of architectures whose layers keep a state of fixed size for each sequence."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

from tests.tiny import CONTEXT, VOCABULARY

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
_RECURRENT = {key: _COMMON[key] for key in ("vocab_size", "hidden_size", "num_hidden_layers", "bos_token_id")}
_RECURRENT |= {"eos_token_id": 2, "pad_token_id": 1, "state_size": 8, "expand": 2}
_LINEAR_AND_FULL = {"layer_types": ["linear_attention", "full_attention"]}
_DELTA_NET = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    **_LINEAR_AND_FULL,
}
_MAMBA = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 4,
}
_CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3_5_text": {**_COMMON, **_DELTA_NET},
    "lfm2": {**_COMMON, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "falcon_h1": {**_COMMON, **_MAMBA, "mamba_d_ssm": 64},
    "granitemoehybrid": {
        **_COMMON,
        **_MAMBA,
        "layer_types": ["mamba", "attention"],
        "num_local_experts": 0,
        "shared_intermediate_size": 48,
    },
    "mamba": {**_RECURRENT, "time_step_rank": 4},
    "mamba2": {**_RECURRENT, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 4},
    "minimax": {**_COMMON, **_LINEAR_AND_FULL, "num_local_experts": 2, "block_size": 4},
    "nemotron_h": {
        **_COMMON,
        "layers_block_type": ["mamba", "attention", "mlp", "mamba"],
        "num_hidden_layers": 4,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 1,
        "ssm_state_size": 8,
        "chunk_size": 4,
    },
}
LINEAR = {
    # PEFT refuses LoRA on Mamba's output projection.
    "falcon_h1": ["q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "gate_proj", "up_proj", "down_proj"],
    "mamba": ["in_proj", "x_proj"],
    "mamba2": ["in_proj"],
    "nemotron_h": ["q_proj", "k_proj", "v_proj", "o_proj", "in_proj", "up_proj", "down_proj"],
}
"""The linear layers that an adapter targets, where those are not all."""


def hybrid_config(kind: str) -> Any:
    """The configuration of a `model_type`."""
    return AutoConfig.for_model(kind, **_CONFIGS[kind])
