from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from adapterhub.base.fingerprint import BaseFingerprint, base_shapes
from adapterhub.errors import ConfigError
from tests.registry.maker import make_base, module_names, values, write_safetensors


def shard(folder: Path) -> None:
    """Splits a base's weights into two files, in another order."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors, reverse=True)
    shards = {name: f"model-{1 + (position % 2)}.safetensors" for position, name in enumerate(names)}
    for file in set(shards.values()):
        save_file({name: tensors[name] for name in names if shards[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def test_a_fingerprint_depends_on_neither_path_nor_shards(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    copy = shutil.copytree(base, tmp_path / "copy")
    (copy / "config.json").write_text(json.dumps(json.loads((base / "config.json").read_text()), indent=2))
    shard(copy)
    assert BaseFingerprint.of(base) == BaseFingerprint.of(copy)
    assert BaseFingerprint.of(base).mismatch(BaseFingerprint.of(copy)) is None
    assert base_shapes(base) == base_shapes(copy)


def test_the_fields_of_a_fingerprint(tmp_path: Path) -> None:
    fingerprint = BaseFingerprint.of(make_base(tmp_path / "base"))
    assert (fingerprint.architecture, fingerprint.model_type) == ("LlamaForCausalLM", "llama")
    assert (fingerprint.vocab_size, fingerprint.hidden_size, fingerprint.num_hidden_layers) == (32, 8, 2)
    assert BaseFingerprint.model_validate_json(fingerprint.model_dump_json()) == fingerprint


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"seed": 1}, "same shape but other weights"),
        ({"layers": 3}, "num_hidden_layers is 3, not 2"),
        ({"vocab_size": 33}, "vocab_size is 33, not 32"),
        (
            {"architectures": ["MistralForCausalLM"]},
            "architecture is MistralForCausalLM, not LlamaForCausalLM",
        ),
        ({"num_attention_heads": 4}, "same shape but other weights"),
    ],
)
def test_another_base_has_another_fingerprint(
    tmp_path: Path, change: dict[str, object], difference: str
) -> None:
    mine, other = make_base(tmp_path / "mine"), make_base(tmp_path / "other", **change)  # type: ignore[arg-type]
    assert difference in str(BaseFingerprint.of(mine).mismatch(BaseFingerprint.of(other)))


def test_shapes_of_a_llama_with_its_tied_head(tmp_path: Path) -> None:
    shapes = base_shapes(make_base(tmp_path / "base"))
    assert shapes["model.layers.1.self_attn.v_proj"] == (4, 8)
    assert shapes["model.layers.0.mlp.down_proj"] == (8, 16)
    assert shapes["lm_head"] == (32, 8)
    assert "model.norm" not in shapes


def test_gpt2_stores_its_layers_transposed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 8, "n_layer": 1}))
    tensors = {
        "h.0.attn.c_attn.weight": values(8, 24),
        "h.0.attn.c_attn.bias": values(24),
        "wte.weight": values(32, 8),
    }
    write_safetensors(tmp_path / "model.safetensors", tensors)
    assert base_shapes(tmp_path) == {"h.0.attn.c_attn": (24, 8), "wte": (32, 8), "lm_head": (32, 8)}
    assert BaseFingerprint.of(tmp_path).hidden_size == 8


def test_shapes_of_4_bit_weights_come_from_quant_state(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    name = module_names()[0]
    state = json.dumps({"quant_type": "nf4", "shape": [8, 8]}).encode()
    tensors = {
        f"{name}.weight": ("U8", (32, 1), b"\0" * 32),
        f"{name}.weight.absmax": ("U8", (1,), b"\0"),
        f"{name}.weight.quant_state.bitsandbytes__nf4": ("U8", (len(state),), state),
    }
    write_safetensors(tmp_path / "model.safetensors", tensors)
    assert base_shapes(tmp_path) == {name: (8, 8)}


@pytest.mark.parametrize("broken", ["nothing", "config", "weights", "escape", "json", "list"])
def test_a_folder_that_is_no_base_is_an_error(tmp_path: Path, broken: str) -> None:
    folder = make_base(tmp_path / "base")
    match broken:
        case "nothing":
            shutil.rmtree(folder)
        case "config":
            (folder / "config.json").unlink()
        case "weights":
            (folder / "model.safetensors").write_bytes(b"no")
        case "escape":
            (folder / "model.safetensors").unlink()
            index = {"weight_map": {"a": "../other/model.safetensors"}}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        case "json":
            (folder / "config.json").write_text("{")
        case "list":
            (folder / "config.json").write_text("[]")
    for read in (BaseFingerprint.of, base_shapes):
        with pytest.raises(ConfigError, match="not a base that can be read") as caught:
            read(folder)
        assert caught.value.hint


def test_real_checkpoints_agree_with_the_loaded_model(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from adapterhub.base.quantized_weights import linear_shape
    from tests import tiny

    for kind in ("llama", "gpt2"):
        folder = tiny.make_base(tmp_path / kind, kind)
        model = AutoModelForCausalLM.from_pretrained(folder)
        live = {name: shape for name, module in model.named_modules() if (shape := linear_shape(module))}
        assert live
        assert live.items() <= base_shapes(folder).items()
