"""The adapter folder for mlx-lm: its files give, by mlx-lm's own arithmetic, the weights that PEFT merges."""

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adapterhub import AdapterRegistry
from adapterhub.errors import AdapterIncompatibleError, ExportError
from adapterhub.export import LoraForm, export_mlx, merge_adapter
from adapterhub.export.mlx import MLX_WEIGHTS_FILE
from tests.tiny import ALL_LINEAR, make_adapter, make_base

PATTERNS = {"rank_pattern": {"layers.1.self_attn.q_proj": 7}, "alpha_pattern": {"v_proj": 3}}
# In transformers -> in mlx-lm, as mlx-lm 0.32 loads such a base.
NAMES = {
    "llama": ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.q_proj"),
    "gpt2": ("transformer.h.1.attn.c_attn", "model.h.1.attn.c_attn"),
    "gemma3": (
        "model.language_model.layers.1.self_attn.q_proj",
        "language_model.model.layers.1.self_attn.q_proj",
    ),
}
TARGETS = {**ALL_LINEAR, "gemma3": ".*language_model.*(q_proj|down_proj)"}


def exported(folder: Path, base: Path, form: LoraForm | None = None, **settings: Any) -> Path:
    """The folder for mlx-lm of an adapter that is made in `folder / "adapter"`."""
    adapter = make_adapter(folder / "adapter", base, target_modules=TARGETS[base.name], **settings)
    registry = AdapterRegistry(folder / "registry")
    registry.register("json", adapter, base=base)
    export_mlx(registry, "json", folder / "out", form)
    return folder / "out"


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return config


def adapted(weight: torch.Tensor, tensors: dict[str, torch.Tensor], layer: str, scale: float) -> torch.Tensor:
    """The weight that mlx-lm's `LoRALinear` or `DoRALinear` multiplies with."""
    change = scale * tensors[f"{layer}.lora_b"].T @ tensors[f"{layer}.lora_a"].T
    if f"{layer}.m" not in tensors:
        return weight + change
    return (tensors[f"{layer}.m"] / (weight + change).norm(dim=1))[:, None] * (weight + change)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"]
)
def test_mlx_lm_computes_what_peft_does(kind: str, settings: dict[str, bool], tmp_path: Path):
    base = make_base(tmp_path / kind, kind)
    out = exported(tmp_path, base, **settings)
    tensors, config = load_file(out / MLX_WEIGHTS_FILE), config_of(out)
    assert config["fine_tune_type"] == ("dora" if settings.get("use_dora") else "lora")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    module, own = NAMES[kind]
    weight = model.get_submodule(module).weight.detach().clone()
    merged = PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload()
    expected = merged.get_submodule(module).weight.detach()
    actual = adapted(weight.T if kind == "gpt2" else weight, tensors, own, config["lora_parameters"]["scale"])
    assert (expected - weight).abs().max() > 0.1
    torch.testing.assert_close(actual.T if kind == "gpt2" else actual, expected, rtol=0, atol=1e-5)


def test_all_layers_have_one_rank_and_the_keys_name_them(tiny_base: Path, tmp_path: Path):
    out = exported(tmp_path, tiny_base, r=5, **PATTERNS)
    parameters, tensors = config_of(out)["lora_parameters"], load_file(out / MLX_WEIGHTS_FILE)
    assert parameters["rank"] == 7
    assert {tensor.shape[0 if name.endswith("lora_b") else 1] for name, tensor in tensors.items()} == {7}
    kinds = {name.split(".", 3)[3].rpartition(".")[0] for name in tensors}
    assert parameters["keys"] == sorted(kinds)
    assert "self_attn.q_proj" in kinds


def test_a_form_is_passed_on(tiny_base: Path, tmp_path: Path):
    out = exported(tmp_path, tiny_base, LoraForm(rank=2, max_error=1))
    assert config_of(out)["lora_parameters"]["rank"] == 2


def test_the_folder_holds_nothing_else_and_a_card_of_mlx(tiny_base: Path, tmp_path: Path):
    out = exported(tmp_path, tiny_base)
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "adapter_config.json",
        MLX_WEIGHTS_FILE,
    ]
    assert ModelCard.load(out / "README.md").data.to_dict()["library_name"] == "mlx"
    assert config_of(out)["model"] == "llama"


def test_a_layer_without_a_name_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_base: Path
):
    monkeypatch.setattr("adapterhub.export.mlx._PREFIXES", {})
    base = make_base(tmp_path / "gpt2", "gpt2")
    with pytest.raises(AdapterIncompatibleError, match=r"'transformer\.h\.0\.attn\.c_attn' is not known"):
        exported(tmp_path, base)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
@pytest.mark.parametrize("tied", [False, True])
def test_an_output_layer_is_refused_where_it_is_tied(tmp_path: Path, tied: bool):
    base = make_base(tmp_path / "llama", tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(task_type="CAUSAL_LM", target_modules=["lm_head"], init_lora_weights=False)
    # Unless it is tied, a copy of the layer is saved too, which is not mlx-lm's.
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter", save_embedding_layers=not tied)
    registry = AdapterRegistry(tmp_path / "registry")
    registry.register("json", tmp_path / "adapter", base=base)
    if tied:
        with pytest.raises(AdapterIncompatibleError, match="changes the output layer"):
            export_mlx(registry, "json", tmp_path / "out")
    else:
        export_mlx(registry, "json", tmp_path / "out")
        assert config_of(tmp_path / "out")["lora_parameters"]["keys"] == ["lm_head"]
        assert load_file(tmp_path / "out" / MLX_WEIGHTS_FILE).keys() == {"lm_head.lora_a", "lm_head.lora_b"}
    assert (tmp_path / "out").exists() != tied


def test_a_folder_in_use_is_refused(tiny_registry: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="not empty"):
        export_mlx(AdapterRegistry(tiny_registry), "json", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("dora", [False, True])
def test_mlx_lm_loads_the_adapter_and_the_merged_model(tiny_base: Path, tmp_path: Path, dora: bool):
    mx = pytest.importorskip("mlx.core", reason="needs mlx-lm")
    load_model = pytest.importorskip("mlx_lm.utils", reason="needs mlx-lm").load_model
    from mlx_lm.tuner.utils import load_adapters

    out = exported(tmp_path, tiny_base, use_dora=dora)
    merge_adapter(tiny_base, tmp_path / "adapter", tmp_path / "merged")
    ids = torch.arange(24).view(1, -1)
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    with torch.no_grad():
        expected = PeftModel.from_pretrained(model, tmp_path / "adapter").eval()(ids).logits.numpy()
    for mlx_model in (
        load_adapters(load_model(tiny_base)[0], str(out)),
        load_model(tmp_path / "merged")[0],
    ):
        logits = numpy.array(mlx_model(mx.array(ids.numpy())))
        numpy.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
