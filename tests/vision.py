"""Tiny vision-language checkpoints: a decoder, and a vision tower with layers of the same names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.tiny import SIZES, VOCABULARY, make_tokenizer

_DECODER = {**SIZES, "head_dim": 16, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
_TOWER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
_QWEN_TOWER = {
    "depth": 1,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 4,
    "patch_size": 14,
    "out_hidden_size": 64,
}
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}}
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {**_DECODER, "sliding_window": 8},
        "vision_config": _TOWER,
        "mm_tokens_per_image": 4,
    },
    "gemma4": {
        "text_config": {
            **_DECODER,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
            "global_head_dim": 32,
        },
        "vision_config": {**_TOWER, "num_key_value_heads": 4, "head_dim": 16, "patch_size": 4},
        "audio_config": None,
    },
    "qwen3_5": {
        "text_config": {
            **_DECODER,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "layer_types": ["linear_attention", "full_attention"],
            "rope_parameters": {**_ROPE["rope_parameters"], "partial_rotary_factor": 1.0},
        },
        "vision_config": {**_QWEN_TOWER, "num_position_embeddings": 16},
    },
    "qwen2_vl": {
        "text_config": {**_DECODER, **_ROPE},
        "vision_config": {**_QWEN_TOWER, "embed_dim": 64},
    },
    "qwen2_5_vl": {"text_config": {**_DECODER, **_ROPE}, "vision_config": _QWEN_TOWER},
    "qwen3_vl": {
        "text_config": {**_DECODER, **_ROPE},
        "vision_config": {**_QWEN_TOWER, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
    },
    "llama4": {
        "text_config": {
            **_DECODER,
            "num_local_experts": 2,
            "intermediate_size_mlp": 128,
            "attention_chunk_size": 64,
            "no_rope_layers": [1, 0],
            "moe_layers": [1],
        },
        "vision_config": {
            **_TOWER,
            "intermediate_size": 256,
            "vision_output_dim": 64,
            "projector_input_dim": 64,
            "projector_output_dim": 64,
        },
    },
    "mistral3": {
        "text_config": {"model_type": "mistral", **_DECODER},
        "vision_config": {"model_type": "pixtral", **_TOWER, "head_dim": 16},
        "image_token_index": 3,
    },
    "llava": {
        "text_config": {"model_type": "llama", **_DECODER},
        "vision_config": {"model_type": "clip_vision_model", **_TOWER},
        "image_token_index": 3,
    },
    "internvl": {
        "text_config": {"model_type": "qwen2", **_DECODER},
        "vision_config": {**_TOWER, "image_size": [28, 28], "patch_size": [14, 14]},
        "image_token_id": 3,
    },
    "smolvlm": {
        "text_config": {"model_type": "llama", **_DECODER},
        "vision_config": _TOWER,
        "image_token_id": 3,
    },
    "lfm2_vl": {
        "text_config": {"model_type": "lfm2", **_DECODER, "layer_types": ["conv", "full_attention"]},
        "vision_config": {"model_type": "siglip2_vision_model", **_TOWER, "num_patches": 16},
        "image_token_id": 3,
    },
}

CONFIGS["qwen3_5_moe"] = {
    **CONFIGS["qwen3_5"],
    "text_config": {
        **CONFIGS["qwen3_5"]["text_config"],
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
}


def make_vision_base(folder: Path, kind: str, *, seed: int = 0) -> Path:
    """Writes a random vision-language checkpoint with its tokenizer, and returns its folder."""
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **CONFIGS[kind]))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.08)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_vision_adapter(
    folder: Path, model: Any, targets: list[str] | str, *, seed: int = 1, **settings: Any
) -> Path:
    """Writes a random LoRA adapter of a loaded model in PEFT's format, and returns its folder."""
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", target_modules=targets, **settings)
    adapted = get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(folder)
    adapted.unload()
    return folder
