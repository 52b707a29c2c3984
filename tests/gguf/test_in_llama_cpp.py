"""Written files in llama.cpp itself: the logits are transformers', for every architecture and kind of positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from adapterhub.export.llama_cpp_file import opened
from tests.gguf.test_model import written

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (make test-gguf)")

IDS = [(7 * number * number + 5 * number) % 300 for number in range(100)]


def rope(kind: str, **settings: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10_000.0, "rope_type": kind, **settings}}


_SCALED = {"factor": 4.0, "original_max_position_embeddings": 64}
_PAIRED = ["sliding_attention", "full_attention"]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, its scaling": ("llama", rope("llama3", low_freq_factor=1.0, high_freq_factor=4.0, **_SCALED)),
    "llama, linear": ("llama", rope("linear", factor=4.0)),
    "mistral, wide heads": ("mistral", {"head_dim": 32, "sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen2, yarn": ("qwen2", rope("yarn", **_SCALED)),
    "qwen3": ("qwen3", {}),
    "qwen3, yarn otherwise": ("qwen3", rope("yarn", attention_factor=1.3, beta_fast=16.0, **_SCALED)),
    "gemma3": ("gemma3", {"query_pre_attn_scalar": 16}),
    "gemma3, windows": ("gemma3", {"query_pre_attn_scalar": 16, "num_hidden_layers": 7, "sliding_window": 8}),
    "gemma3, other windows": (
        "gemma3",
        {
            "query_pre_attn_scalar": 16,
            "num_hidden_layers": 4,
            "sliding_window": 8,
            "layer_types": _PAIRED * 2,
        },
    ),
    "phi3": ("phi3", {}),
    "phi3, part of a head": ("phi3", rope("default", partial_rotary_factor=0.5)),
    "phi3, longrope": (
        "phi3",
        {
            "original_max_position_embeddings": 64,
            **rope(
                "longrope", short_factor=[1.0] * 8, long_factor=[1.5 + 0.3 * i for i in range(8)], **_SCALED
            ),
        },
    ),
    "gpt2": ("gpt2", {}),
    "gpt2, narrow": ("gpt2", {"n_inner": 128}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("file_type", "largest"), [("f32", 4e-3), ("f16", 0.015)])
def test_logits(tmp_path: Path, case: str, file_type: str, largest: float):
    kind, changes = CASES[case]
    base, file = written(tmp_path, kind, file_type, **changes)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = model(torch.tensor([IDS])).logits[0]
    with opened(file) as loaded:
        (found,) = loaded.logits([IDS])
    assert (torch.from_numpy(found) - wanted).abs().max() < largest
    assert wanted.std() > 0.5


def test_a_row_out_of_order_is_far_outside(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("adapterhub.gguf.architectures.Architecture.row_order", lambda self, name: None)
    base, file = written(tmp_path, "llama")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = model(torch.tensor([IDS])).logits[0]
    with opened(file) as loaded:
        (found,) = loaded.logits([IDS])
    assert (torch.from_numpy(found) - wanted).abs().max() > 0.5
