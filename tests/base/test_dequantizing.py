"""Bases in fp8 and mxfp4: their 16-bit form holds the values that the formats define."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssConfig

from adapterhub import AdapterRegistry
from adapterhub.base import BaseFingerprint, load_base, locate_base
from adapterhub.base.locating import locate_base_config, stored_base_folder, tokenizer_chat_template
from adapterhub.engine import BatchingEngine
from adapterhub.errors import ConfigError
from adapterhub.export import merge_adapter
from tests.engine.maker import Reference, prompt_of, request, stored_request
from tests.tiny import VOCABULARY, make_adapter, make_base, make_tokenizer
from tests.vision import make_vision_base

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
"""Values of 4-bit floats, by the OCP Microscaling Formats specification; the highest bit is the sign."""

Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def set_method(folder: Path, settings: dict[str, object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))


def fp8_base(folder: Path) -> tuple[Path, Path]:
    """A base in fp8, with a scale for each block of 32 x 32 weights, and the same values in bfloat16."""
    exact = make_base(folder / "exact", dtype=torch.bfloat16)
    stored = Path(shutil.copytree(exact, folder / "fp8"))
    values, tensors = load_file(exact / "model.safetensors"), {}
    for name, weight in values.items():
        if "_proj" not in name:
            tensors[name] = weight
            continue
        rows, columns = weight.shape[0] // 32, weight.shape[1] // 32
        blocks = weight.float().reshape(rows, 32, columns, 32)
        scales = (
            2.0 ** blocks.abs().amax((1, 3)).div(448).log2().ceil()
        )  # so that bfloat16 holds the products
        quantised = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
        tensors[name] = quantised.reshape(weight.shape)
        tensors[f"{name}_scale_inv"] = scales
        values[name] = (quantised.float() * scales[:, None, :, None]).reshape(weight.shape).bfloat16()
    save_file(tensors, stored / "model.safetensors", {"format": "pt"})
    save_file(values, exact / "model.safetensors", {"format": "pt"})
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [32, 32]}
    set_method(stored, settings)
    return stored, exact


def mxfp4_base(folder: Path) -> tuple[Path, Path]:
    """A tiny gpt-oss whose experts are in mxfp4, and the same values in bfloat16."""
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=256,
        eos_token_id=2,
        pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    model = AutoModelForCausalLM.from_config(config).bfloat16()
    exact, stored = folder / "exact", folder / "mxfp4"
    tensors = {}
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.1)
        if name.endswith(("gate_up_proj", "down_proj")):
            # Stored with inputs last, 32 of them to a scale.
            experts, inputs, outputs = parameter.shape
            codes = torch.randint(16, (experts, outputs, inputs // 32, 32), dtype=torch.uint8)
            scales = torch.randint(120, 126, (experts, outputs, inputs // 32), dtype=torch.uint8)
            values = E2M1[(codes % 8).long()] * torch.where(codes > 7, -1, 1)
            values = (values * 2.0 ** (scales.float()[..., None] - 127)).reshape(experts, outputs, inputs)
            parameter.data = values.transpose(1, 2).contiguous().bfloat16()
            tensors[f"{name}_blocks"] = codes[..., ::2] | codes[..., 1::2] << 4
            tensors[f"{name}_scales"] = scales
        else:
            tensors[name] = parameter.data
    model.save_pretrained(exact)
    make_tokenizer().save_pretrained(exact)
    shutil.copytree(exact, stored)
    save_file({name: one.contiguous() for name, one in tensors.items()}, stored / "model.safetensors")
    set_method(stored, {"quant_method": "mxfp4"})
    return stored, exact


@pytest.mark.parametrize("make", [fp8_base, mxfp4_base])
def test_the_16_bit_form_has_the_values_of_the_format(tmp_path: Path, cache: Path, make):
    stored, exact = make(tmp_path)
    folder = locate_base(stored)
    assert folder.is_relative_to(cache)
    assert locate_base(stored) == folder
    own, wanted = load_file(folder / "model.safetensors"), load_file(exact / "model.safetensors")
    assert own.keys() == wanted.keys()
    for name, weight in wanted.items():
        assert torch.equal(own[name], weight), name
    assert BaseFingerprint.of(folder).digest == BaseFingerprint.of(exact).digest
    assert load_base(stored, quantization="nf4", device="cpu").quantization == "nf4"


def test_an_adapter_is_registered_served_and_merged_on_it(tmp_path: Path):
    stored, exact = fp8_base(tmp_path)
    adapter = make_adapter(tmp_path / "adapter", exact)
    registry = AdapterRegistry(tmp_path / "registry")
    card = registry.register("a", adapter, base=str(stored))
    assert card.warnings == ()
    reference = Reference(AutoModelForCausalLM.from_pretrained(exact, dtype=torch.float32), {"a": adapter})
    engine = BatchingEngine(load_base(stored, quantization=None, device="cpu"))
    asked = [request(prompt_of(3, 9), one) for one in (None, stored_request("a", registry.folder(card)))]
    got = [list(one.token_ids) for (one,) in engine.generate(asked)]
    engine.close()
    assert got == [reference.generate(name, prompt_of(3, 9), 12) for name in (None, "a")]
    assert merge_adapter(locate_base(stored), registry.folder(card), tmp_path / "merged").merged == 4


def test_what_only_reads_the_tokenizer_converts_nothing(tmp_path: Path, cache: Path):
    stored, exact = fp8_base(tmp_path)
    assert tokenizer_chat_template(stored) == tokenizer_chat_template(exact)
    assert locate_base_config(stored) == stored_base_folder(stored) == stored
    assert not cache.exists()


def without_weight(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: one for name, one in tensors.items() if name != Q_PROJ}


def without_scale(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: one for name, one in tensors.items() if name != f"{Q_PROJ}_scale_inv"}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(without_weight, "it lacks weights"), (without_scale, f"its weight '{Q_PROJ}' has no scale")],
)
def test_damaged_weights_are_refused_and_leave_nothing(
    tmp_path: Path,
    cache: Path,
    damage: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    reason: str,
):
    stored, _ = fp8_base(tmp_path)
    save_file(damage(load_file(stored / "model.safetensors")), stored / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=f"could not be brought to 16 bits: {reason}"):
        locate_base(stored)
    assert not [path for path in (cache / "dequantized").iterdir() if path.is_dir()]


def test_settings_of_the_decoder_alone_count_too(tmp_path: Path):
    """As in vision-language checkpoints whose vision tower is not quantised."""
    base = make_vision_base(tmp_path / "base", "qwen2_5_vl")
    config = json.loads((base / "config.json").read_text())

    def set_decoders_method(method: str) -> None:
        config["text_config"]["quantization_config"] = {"quant_method": method}
        (base / "config.json").write_text(json.dumps(config))

    set_decoders_method("gptq")
    with pytest.raises(ConfigError, match="quantised by 'gptq'"):
        load_base(base, device="cpu")
    set_decoders_method("fp8")
    assert "quantization_config" not in (locate_base(base) / "config.json").read_text()
