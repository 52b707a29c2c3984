"""Names and shapes of a base's linear layers, without its weights, are those of the loaded model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from adapterhub.base.linear_layers import LinearLayers
from adapterhub.base.loading import load_base
from adapterhub.errors import ConfigError
from tests.registry import maker
from tests.tiny import make_base

KINDS = ["llama", "gpt2", "gemma3", "mixtral"]


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def base(kind: str, tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / kind, kind)


@pytest.fixture(scope="module")
def layers(base: Path) -> LinearLayers:
    layers = LinearLayers.of_folder(base)
    assert layers is not None
    return layers


@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_a_folder_and_the_loaded_model_agree(base: Path, layers: LinearLayers, quantization):
    loaded = load_base(base, quantization=quantization, device="cpu").linear_layers
    assert loaded.shapes == layers.shapes
    assert (loaded.head, loaded.tied) == (layers.head, layers.tied)
    # bitsandbytes stores GPT-2's layers as others are.
    assert loaded.transposed == (layers.transposed if quantization is None else frozenset())
    assert all(loaded.find(name) == name for name in layers.shapes)


def test_every_layer_is_found_by_its_name_in_the_files(base: Path, layers: LinearLayers, kind: str):
    """transformers loads each tensor to the parameter that `parameters_in` names, unless it splits or joins it."""
    model = AutoModelForCausalLM.from_pretrained(base)
    with safe_open(base / "model.safetensors", "pt") as file:
        names = layers.parameters_in(file.keys())
        state = model.state_dict()
        assert all(state[parameter].equal(file.get_tensor(tensor)) for parameter, tensor in names.items())
        missing = set(state) - set(names) - set(layers.tied)
        assert all(".experts." in name for name in missing)
        assert bool(missing) == (kind == "mixtral")
        for parameter, tensor in names.items():
            module = parameter.removesuffix(".weight")
            if module in layers.shapes and kind != "gpt2":
                assert layers.find(tensor.removesuffix(".weight")) == module


def test_what_is_transposed_and_tied(layers: LinearLayers, kind: str):
    assert (len(layers.transposed) == 8) == (kind == "gpt2")
    assert layers.transposed <= layers.shapes.keys()
    embeddings = {"gpt2": "transformer.wte.weight", "gemma3": "model.language_model.embed_tokens.weight"}
    assert layers.tied == ({"lm_head.weight": embeddings[kind]} if kind in embeddings else {})
    assert layers.head == "lm_head"


def test_files_that_lack_the_models_prefix(tmp_path: Path):
    """The GPT-2 of the hub has `h.0...`; the model has `transformer.h.0...`."""
    layers = LinearLayers.of_folder(make_base(tmp_path / "gpt2", "gpt2"))
    assert layers
    assert layers.parameters_in(["h.0.attn.c_attn.weight", "wte.weight", "h.0.attn.bias", "other"]) == {
        "transformer.h.0.attn.c_attn.weight": "h.0.attn.c_attn.weight",
        "transformer.wte.weight": "wte.weight",
    }


def test_names_that_are_no_layer(layers: LinearLayers):
    for name in (
        "",
        "model",
        "model.layers.9.self_attn.q_proj",
        "lm_head.weight",
        "layers.0.self_attn.q_proj",
    ):
        assert layers.find(name) is None


def test_a_base_is_built_once_until_its_config_changes(tmp_path: Path):
    base = maker.make_base(tmp_path / "base")
    first = LinearLayers.of_folder(base)
    assert LinearLayers.of_folder(str(base)) is first
    assert first
    assert first.shapes["model.layers.0.mlp.down_proj"] == (8, 16)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    second = LinearLayers.of_folder(base)
    assert second
    assert len(second.shapes) < len(first.shapes)


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_the_dtype_of_other_threads_stays_as_it_is(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
):
    """torch's default dtype is one for the process, and an engine may compute while an adapter is checked."""
    base = make_base(tmp_path / "base", kind, dtype=torch.bfloat16)
    dtypes: list[torch.dtype] = []
    monkeypatch.setattr(torch, "set_default_dtype", dtypes.append)
    assert LinearLayers.of_folder(base)
    assert set(dtypes) == {torch.float32}


def test_a_config_that_the_models_code_does_not_expect(tmp_path: Path):
    base = maker.make_base(tmp_path / "base", num_attention_heads=0)
    with pytest.raises(ConfigError, match="not a base that can be read"):
        LinearLayers.of_folder(base)


@pytest.mark.parametrize("config", [None, "{", "[]", '{"model_type": "no-such"}', '{"model_type": "clip"}'])
def test_a_folder_that_is_no_causal_language_model(tmp_path: Path, config: str | None):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigError) as caught:
        LinearLayers.of_folder(tmp_path)
    assert str(tmp_path) in caught.value.message


def test_code_of_a_base_is_not_run(tmp_path: Path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "own", "auto_map": {"AutoConfig": "c.C", "AutoModelForCausalLM": "m.M"}})
    )
    for name in "cm":
        (tmp_path / f"{name}.py").write_text("raise SystemExit('it was run')")
    assert LinearLayers.of_folder(tmp_path) is None
