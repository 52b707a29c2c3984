"""The settings that llama.cpp reads from a GGUF file, and what it cannot compute as the model does.

The keys are those of the GGUF specification (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). What a
file does not say llama.cpp takes for granted, so a setting without a key, such as another activation, is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from adapterhub.errors import ExportError
from adapterhub.gguf.architectures import Architecture

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Field: TypeAlias = str | int | float | bool | Sequence[str] | Sequence[int] | Sequence[float]

_ACTIVATIONS = {"gpt2": {"gelu_new", "gelu_pytorch_tanh"}, "gemma3": {"gelu_pytorch_tanh"}}
_ROPE_TYPES = {
    "llama": {"default", "linear", "yarn", "llama3"},
    "qwen2": {"default", "linear", "yarn"},
    "qwen3": {"default", "linear", "yarn"},
    "gemma3": {"default", "linear"},
    "phi3": {"default", "longrope"},
}
# The layers of Gemma 3 27B, whose attention llama.cpp scales otherwise than that of the others.
_GEMMA3_27B_LAYERS = 62
_GEMMA3_PATTERN = 6


def hyperparameters(architecture: Architecture) -> dict[str, Field]:
    """The fields of a file that describe the model, such as `"llama.block_count"`.

    Args:
        architecture: The model's.

    Raises:
        ExportError: The model computes something that llama.cpp's architecture does not.
    """
    config, name = architecture.config, architecture.name
    _refuse_other_arithmetic(architecture)
    fields: dict[str, Field] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "attention.head_count": config.num_attention_heads,
        "vocab_size": config.vocab_size,
    }
    if name == "gpt2":
        fields["feed_forward_length"] = config.n_inner or 4 * config.hidden_size
        fields["attention.layer_norm_epsilon"] = config.layer_norm_epsilon
    else:
        fields |= _rms_and_heads(config) | _rope(architecture)
    if name == "gemma3":
        fields |= _gemma3(config)
    return {f"{name}.{key}": value for key, value in fields.items()}


def attention_window(architecture: Architecture) -> int | None:
    """After how many tokens the model forgets, and llama.cpp does not; None if they attend to the same."""
    if architecture.name == "gemma3":
        return None
    window = getattr(architecture.config, "sliding_window", None)
    return window if window and window < architecture.config.max_position_embeddings else None


def rope_tensors(architecture: Architecture) -> dict[str, npt.NDArray[np.float32]]:
    """The factors of rotary frequencies that llama.cpp reads as tensors, by its names."""
    import numpy as np

    if architecture.name == "gpt2":
        return {}
    rope = _rope_parameters(architecture)
    if rope["rope_type"] == "longrope":
        names = {"rope_factors_long.weight": "long_factor", "rope_factors_short.weight": "short_factor"}
        return {name: np.asarray(rope[key], dtype=np.float32) for name, key in names.items()}
    if rope["rope_type"] != "llama3":
        return {}
    scaled, _ = _scaled_frequencies(architecture)
    plain = rope["rope_theta"] ** -(np.arange(len(scaled)) / len(scaled))
    return {"rope_freqs.weight": (plain / scaled).astype(np.float32)}


def _rms_and_heads(config: Any) -> dict[str, Field]:
    size = _head_size(config)
    return {
        "feed_forward_length": config.intermediate_size,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "attention.key_length": size,
        "attention.value_length": size,
    }


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _rope_parameters(architecture: Architecture) -> dict[str, Any]:
    """Those of layers that attend to everything; Gemma 3 has others where a window slides."""
    parameters: dict[str, Any] = architecture.config.rope_parameters
    full: dict[str, Any] = parameters.get("full_attention", parameters)
    return full


def _rope(architecture: Architecture) -> dict[str, Field]:
    rope, config = _rope_parameters(architecture), architecture.config
    size = int(_head_size(config) * rope.get("partial_rotary_factor", 1.0))
    fields: dict[str, Field] = {"rope.freq_base": float(rope["rope_theta"]), "rope.dimension_count": size}
    kind = rope["rope_type"]
    if kind in ("linear", "yarn"):
        fields |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind in ("yarn", "longrope"):
        original = rope.get("original_max_position_embeddings") or config.original_max_position_embeddings
        _, attention = _scaled_frequencies(architecture)
        usual = _llama_cpp_s_yarn_factor(rope["factor"]) if kind == "yarn" else 1.0
        fields |= {
            "rope.scaling.original_context_length": original,
            "rope.scaling.attn_factor": attention / usual,
        }
    if kind == "yarn":
        fields["rope.scaling.yarn_beta_fast"] = float(rope.get("beta_fast") or 32)
        fields["rope.scaling.yarn_beta_slow"] = float(rope.get("beta_slow") or 1)
    return fields


def _llama_cpp_s_yarn_factor(factor: float) -> float:
    """What llama.cpp scales the attention by for YaRN itself (https://arxiv.org/abs/2309.00071, section 3.4)."""
    import math

    return 1.0 if factor <= 1 else 0.1 * math.log(factor) + 1.0


def _scaled_frequencies(architecture: Architecture) -> tuple[npt.NDArray[np.float32], float]:
    """transformers' own frequencies and factor of the attention."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind = _rope_parameters(architecture)["rope_type"]
    frequencies, attention = ROPE_INIT_FUNCTIONS[kind](architecture.config, "cpu")
    return frequencies.numpy(), float(attention)


def _gemma3(config: Any) -> dict[str, Field]:
    fields: dict[str, Field] = {}
    if (pattern := _window_pattern(config.layer_types)) != 1:
        fields["attention.sliding_window"] = config.sliding_window
        fields["rope.freq_base_swa"] = float(config.rope_parameters["sliding_attention"]["rope_theta"])
    if pattern not in (1, _GEMMA3_PATTERN):
        fields["attention.sliding_window_pattern"] = pattern
    if config.final_logit_softcapping:
        fields["final_logit_softcapping"] = float(config.final_logit_softcapping)
    return fields


def _window_pattern(layers: Sequence[str]) -> int:
    """Of how many layers each last one attends to everything."""
    wanted = [layer == "full_attention" for layer in layers]
    patterns: list[int] = [_GEMMA3_PATTERN, *range(1, len(layers) + 1)]
    for pattern in patterns:
        if wanted == [index % pattern == pattern - 1 for index in range(len(layers))]:
            return pattern
    raise _unlike("the order of its layers with a sliding window")


def _refuse_other_arithmetic(architecture: Architecture) -> None:
    config, name = architecture.config, architecture.name
    names = ("hidden_act", "hidden_activation", "activation_function")
    activation = next(value for key in names if (value := getattr(config, key, None)))
    if activation not in _ACTIVATIONS.get(name, {"silu"}):
        raise _unlike(f"the activation {activation!r}")
    if name == "gpt2":
        if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
            raise _unlike("its scaling of the attention")
        return
    rope = _rope_parameters(architecture)
    if rope["rope_type"] not in _ROPE_TYPES[name] or rope.get("truncate") is False:
        raise _unlike(f"rotary embeddings of the kind {rope['rope_type']!r}")
    if name == "gemma3" and _gemma3_differs(config):
        raise _unlike("its scaling of the attention, or its softcapping, or attention in both directions")


def _gemma3_differs(config: Any) -> bool:
    large = config.num_hidden_layers == _GEMMA3_27B_LAYERS
    scale = config.hidden_size // config.num_attention_heads if large else config.head_dim
    sliding = config.rope_parameters["sliding_attention"]["rope_type"]
    return bool(
        config.query_pre_attn_scalar != scale
        or config.attn_logit_softcapping
        or config.use_bidirectional_attention
        or sliding != "default"
    )


def _unlike(what: str) -> ExportError:
    return ExportError(
        f"llama.cpp does not compute what the model does: {what}.",
        hint="Serve it with adapterhub, vLLM or transformers (`--format peft`, or `adapterhub merge`).",
    )
