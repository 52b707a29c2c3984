"""Layers that are computed without transformers are those of transformers' model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapterhub.base.linear_layers import LinearLayers
from adapterhub.base.plain_decoder import plain_decoder_shapes
from tests.registry import maker

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "vocab_size": 100,
}


def write(folder: Path, **config: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("more", [{}, {"attention_bias": True, "tie_word_embeddings": True}])
@pytest.mark.parametrize("head", [{"head_dim": 16}, {}], ids=["16", "derived"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_layers_are_those_of_the_model(tmp_path: Path, kind: str, head: dict, more: dict):
    base = write(tmp_path, model_type=kind, **SIZES, **head, **more)
    shapes = plain_decoder_shapes(base)
    if kind == "qwen3" and not head:  # its default does not follow from the other sizes
        assert shapes is None
        return
    layers = LinearLayers.of_folder(base)
    assert layers
    assert shapes == layers.shapes
    assert shapes["model.layers.1.self_attn.k_proj"] == (3 * head.get("head_dim", 8), 48)


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "mixtral"},
        {"model_type": ["llama"]},
        {"num_key_value_heads": None},
        {"hidden_size": 49},
        {"head_dim": None},
        {"vocab_size": True},
        {"num_hidden_layers": "2"},
        {"auto_map": {"AutoConfig": "c.C"}},
    ],
)
def test_what_only_transformers_can_tell(tmp_path: Path, change: dict[str, Any]):
    assert plain_decoder_shapes(write(tmp_path, **{"model_type": "llama", **SIZES, **change})) is None


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000])
def test_a_config_that_cannot_be_read(tmp_path: Path, content: str):
    (tmp_path / "config.json").write_text(content)
    assert plain_decoder_shapes(tmp_path) is None


def test_an_adapter_is_registered_and_verified_without_torch(tmp_path: Path):
    maker.make_base(tmp_path / "base")
    maker.make_adapter(tmp_path / "adapter")
    code = (
        "import sys; from adapterhub import AdapterRegistry; registry = AdapterRegistry('registry'); "
        "registry.register('a', 'adapter', base='base'); assert registry.verify() == []; "
        "assert registry.get('a').warnings == (); "
        "assert not {'torch', 'transformers', 'peft'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
