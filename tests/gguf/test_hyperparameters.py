"""Settings that llama.cpp reads, and what it would compute otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapterhub.errors import ExportError
from adapterhub.gguf import Architecture
from adapterhub.gguf.hyperparameters import attention_window, hyperparameters, rope_tensors
from tests.tiny import make_base


def architecture(tmp_path: Path, kind: str = "llama", **changes: Any) -> Architecture:
    return Architecture.of_folder(make_base(tmp_path / "base", kind, **changes))


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10_000.0, "rope_type": kind, **settings}}


def test_a_llama(tmp_path: Path):
    assert hyperparameters(architecture(tmp_path)) == {
        "llama.context_length": 256,
        "llama.embedding_length": 64,
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
        "llama.vocab_size": 320,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "llama.rope.freq_base": 10_000.0,
        "llama.rope.dimension_count": 16,
    }


def test_the_factor_of_yarn_is_relative_to_llama_cpp_s_own(tmp_path: Path):
    usual = rope("yarn", factor=4.0, original_max_position_embeddings=64)
    fields = hyperparameters(architecture(tmp_path / "usual", "qwen2", **usual))
    assert fields["qwen2.rope.scaling.attn_factor"] == pytest.approx(1)
    assert fields["qwen2.rope.scaling.original_context_length"] == 64
    own = rope("yarn", factor=4.0, original_max_position_embeddings=64, attention_factor=2.0)
    fields = hyperparameters(architecture(tmp_path / "own", "qwen2", **own))
    assert fields["qwen2.rope.scaling.attn_factor"] == pytest.approx(2 / 1.1386294361)


def test_llama3_s_factors(tmp_path: Path):
    """As the formula gives them: 1 for short waves, the factor for long ones."""
    scaling = rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
    )
    factors = rope_tensors(architecture(tmp_path, **scaling))["rope_freqs.weight"]
    assert factors.shape == (8,)
    assert factors[0] == pytest.approx(1)
    assert factors[-1] == pytest.approx(8)


def test_windows(tmp_path: Path):
    assert attention_window(architecture(tmp_path / "short", "mistral", sliding_window=64)) == 64
    assert attention_window(architecture(tmp_path / "long", "mistral", sliding_window=4096)) is None
    paired = ["sliding_attention", "full_attention"]
    gemma = architecture(
        tmp_path / "gemma", "gemma3", query_pre_attn_scalar=16, num_hidden_layers=4, layer_types=paired * 2
    )
    assert attention_window(gemma) is None
    assert hyperparameters(gemma)["gemma3.attention.sliding_window_pattern"] == 2


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("llama", {"hidden_act": "gelu"}, "the activation 'gelu'"),
        ("llama", rope("dynamic", factor=2.0), "rotary embeddings of the kind 'dynamic'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "its scaling of the attention"),
        ("gpt2", {"activation_function": "relu"}, "the activation 'relu'"),
        ("gemma3", {"query_pre_attn_scalar": 100}, "its scaling of the attention"),
        (
            "gemma3",
            {"query_pre_attn_scalar": 16, "layer_types": ["full_attention", "sliding_attention"]},
            "the order of its layers",
        ),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(
    tmp_path: Path, kind: str, changes: dict[str, Any], message: str
):
    with pytest.raises(ExportError, match=message):
        hyperparameters(architecture(tmp_path, kind, **changes))
