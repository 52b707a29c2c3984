"""How llama.cpp names and stores weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adapterhub.errors import ExportError
from adapterhub.gguf import Architecture
from tests.tiny import make_base


def test_llama_s_names_and_row_order(tmp_path: Path):
    architecture = Architecture.of_folder(make_base(tmp_path / "base"))
    assert architecture.name == "llama"
    assert architecture.tensor_name("model.layers.1.mlp.gate_proj.weight") == "blk.1.ffn_gate.weight"
    assert architecture.tensor_name("lm_head.weight") == "output.weight"
    order = architecture.row_order("model.layers.0.self_attn.k_proj.weight")
    # Two heads of 16 rows: row i of the first half and row i of the second become neighbours.
    head = [row for pair in zip(range(8), range(8, 16), strict=True) for row in pair]
    assert order is not None
    assert order.tolist() == [*head, *(16 + row for row in head)]
    assert architecture.row_order("model.layers.0.self_attn.v_proj.weight") is None
    assert architecture.row_order("model.norm.weight") is None


def test_row_order_is_that_of_rotated_pairs(tmp_path: Path):
    """Rotating neighbours of the reordered rows is rotating halves of the rows as they stand."""
    architecture = Architecture.of_folder(make_base(tmp_path / "base", "mistral"))
    order = architecture.row_order("model.layers.0.self_attn.q_proj.weight")
    assert order is not None
    rows, cos, sin = np.random.default_rng(0).normal(size=64), 0.6, 0.8
    halves = rows.reshape(4, 2, 8)
    rotated = np.stack(
        [halves[:, 0] * cos - halves[:, 1] * sin, halves[:, 1] * cos + halves[:, 0] * sin], axis=1
    ).reshape(-1)
    even, odd = rows[order].reshape(-1, 2).T
    pairs = np.stack([even * cos - odd * sin, odd * cos + even * sin], axis=1).reshape(-1)
    np.testing.assert_allclose(pairs, rotated[order])


def test_tied_output_is_left_out(tmp_path: Path):
    architecture = Architecture.of_folder(make_base(tmp_path / "base", "qwen2", tie_word_embeddings=True))
    assert architecture.tensor_name("lm_head.weight") is None
    assert architecture.tensor_name("model.layers.0.self_attn.q_proj.bias") == "blk.0.attn_q.bias"
    assert architecture.row_order("model.layers.0.self_attn.q_proj.weight") is None


def test_gpt2_is_transposed(tmp_path: Path):
    architecture = Architecture.of_folder(make_base(tmp_path / "base", "gpt2"))
    assert architecture.is_transposed("transformer.h.0.attn.c_attn.weight")
    assert not architecture.is_transposed("transformer.h.0.attn.c_attn.bias")
    assert not architecture.is_transposed("transformer.wte.weight")
    assert architecture.tensor_name("transformer.h.0.attn.c_attn.weight") == "blk.0.attn_qkv.weight"
    assert architecture.tensor_name("transformer.h.0.attn.bias") is None


def test_gemma_s_text_part(tmp_path: Path):
    architecture = Architecture.of_folder(make_base(tmp_path / "base", "gemma3"))
    assert architecture.name == "gemma3"
    norm = "model.language_model.layers.0.self_attn.q_norm.weight"
    assert (architecture.tensor_name(norm), architecture.offset(norm)) == ("blk.0.attn_q_norm.weight", 1.0)
    assert architecture.offset("model.language_model.layers.0.self_attn.q_proj.weight") == 0.0
    vision = next(name for name in architecture.layers.parameters if "vision_tower" in name)
    assert architecture.tensor_name(vision) is None


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "gemma3", "gpt2"])
def test_every_parameter_has_its_own_name(tmp_path: Path, kind: str):
    architecture = Architecture.of_folder(make_base(tmp_path / "base", kind))
    found = {name: architecture.tensor_name(name) for name in architecture.layers.parameters if "." in name
             and name.endswith((".weight", ".bias"))}  # fmt: skip
    names = [name for name in found.values() if name]
    assert len(names) == len(set(names)) > 20


def test_other_architectures_are_refused(tmp_path: Path):
    with pytest.raises(ExportError, match="no GGUF writer for 'mixtral'") as caught:
        Architecture.of_folder(make_base(tmp_path / "base", "mixtral"))
    assert "--llama-cpp-dir" in (caught.value.hint or "")


def test_a_weight_that_llama_cpp_lacks_is_refused(tmp_path: Path):
    architecture = Architecture.of_folder(make_base(tmp_path / "base"))
    with pytest.raises(ExportError, match=r"has no weight for 'model\.layers\.0\.new\.weight'"):
        architecture.tensor_name("model.layers.0.new.weight")
