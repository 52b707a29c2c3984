"""LoRA on the bare parameters of mixtures (`target_parameters`), against PEFT: several adapters in one forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from adapterhub.base.fit import check_fit
from adapterhub.base.linear_layers import LinearLayers
from adapterhub.errors import AdapterIncompatibleError, AdapterInvalidError
from adapterhub.lora.loading import load_folder_deltas
from adapterhub.lora.mapping import LoraMapping
from adapterhub.lora.model_manager import LoraModelManager
from adapterhub.lora.parameter_delta import ExpertFactors, ParameterDelta
from adapterhub.peft_format.checks import LoraShape, inspect_adapter
from adapterhub.peft_format.config import LoraSettings

# PEFT compares patterns with the names of modules for this warning, and with those of parameters when it uses them.
pytestmark = pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning")
_SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "eos_token_id": 1,
    "num_experts_per_tok": 2,
}
MIXTURES: Mapping[str, dict[str, Any]] = {
    # fused experts, and the router, under transformers' interface
    "qwen3_moe": {"moe_intermediate_size": 24, "num_experts": 4},
    # matrices transposed, biases, gate and up interleaved
    "gpt_oss": {"num_local_experts": 4},
    # the router gets a bias of each expert too
    "minimax_m2": {"num_local_experts": 4, "rotary_dim": 8},
    # experts without a gate
    "nemotron_h": {
        "layers_block_type": ["attention", "moe"],
        "n_routed_experts": 4,
        "moe_intermediate_size": 24,
        "moe_shared_expert_intermediate_size": 24,
        "n_group": 1,
        "topk_group": 1,
        "mamba_num_heads": 2,
        "mamba_head_dim": 16,
    },
    # not the interface: all experts compute all tokens, and the router is a kind of nn.Linear
    "llama4_text": {
        "num_local_experts": 4,
        "intermediate_size_mlp": 48,
        "interleave_moe_layer_step": 1,
        "attention_chunk_size": 64,
    },
}
EXPERTS = ["experts.gate_up_proj", "experts.up_proj", "experts.down_proj"]
ROUTERS = ["gate.weight", "router.weight"]
TARGETS: Mapping[str, dict[str, Any]] = {
    "experts": {"target_modules": [], "target_parameters": EXPERTS},
    "one parameter": {"target_modules": ["q_proj"], "target_parameters": ["experts.down_proj"]},
    "router": {"target_modules": [], "target_parameters": ROUTERS},
    "other ranks": {
        "target_modules": [],
        "target_parameters": [*EXPERTS, *ROUTERS],
        "rank_pattern": {".*down_proj": 2},
        "alpha_pattern": {"experts.down_proj": 3},
    },
}
LENGTH = 6


@cache
def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**_SIZES, **MIXTURES[kind]}))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return model.float().eval()


def copy_of(kind: str) -> Any:
    copied = AutoModelForCausalLM.from_config(model_of(kind).config).float().eval()
    copied.load_state_dict(model_of(kind).state_dict())
    return copied


def tuned(kind: str, folder: Path, seed: int, **settings: Any) -> Any:
    """PEFT's model with a random adapter, which is saved."""
    config = LoraConfig(**{"r": 3, "lora_alpha": 4, "task_type": "CAUSAL_LM", **settings})
    adapted = get_peft_model(copy_of(kind), config).eval()
    torch.manual_seed(seed)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(folder)
    return adapted


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        out: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    return out


def prompts(count: int) -> torch.Tensor:
    return torch.randint(3, 60, (count, LENGTH), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        *((kind, "experts") for kind in MIXTURES),
        *((kind, "router") for kind in ("gpt_oss", "minimax_m2", "llama4_text")),
        ("qwen3_moe", "one parameter"),
        ("qwen3_moe", "other ranks"),
        ("gpt_oss", "other ranks"),
    ],
)
def test_a_mixed_batch_is_pefts(kind: str, targets: str, tmp_path: Path) -> None:
    """The base's tokens are those without adapters; every adapter changes its own as PEFT does, and only those."""
    settings = [TARGETS[targets], {**TARGETS[targets], "r": 5, "use_rslora": True}]
    folders = [tmp_path / "a", tmp_path / "b"]
    tuned_models = [tuned(kind, folder, n, **settings[n]) for n, folder in enumerate(folders)]
    model, ids = copy_of(kind), prompts(3)
    wanted = [logits(one, ids[n : n + 1])[0] for n, one in enumerate([model, *tuned_models])]
    layers = LinearLayers.of_model(model)
    manager = LoraModelManager(model, slots=4, dtype=torch.float32)
    for slot, folder in zip((1, 3), folders, strict=True):
        info = inspect_adapter(folder)
        check_fit(info.modules, layers, info.config.settings, targets=True)
        manager.load(slot, load_folder_deltas(folder, model, layers, dtype=torch.float32))
    with manager.using(LoraMapping([(1, LENGTH), (3, LENGTH)], num_base_tokens=LENGTH)):
        got = logits(model, ids)
    assert [float((one - want).abs().max()) < 1e-5 for one, want in zip(got, wanted, strict=True)] == [
        True
    ] * 3
    assert all(
        (want - logits(model, ids[n : n + 1])[0]).abs().max() > 0.01 for n, want in enumerate(wanted) if n
    )


def test_all_linear_of_peft_is_served(tmp_path: Path) -> None:
    """Of most mixtures PEFT writes the experts and the router, under the last parts of their names."""
    adapted = tuned("qwen3_moe", tmp_path, 1, target_modules="all-linear")
    settings = inspect_adapter(tmp_path).config.settings
    assert settings.target_parameters == ("down_proj", "gate.weight", "gate_up_proj")
    model, ids = copy_of("qwen3_moe"), prompts(1)
    deltas = load_folder_deltas(tmp_path, model, LinearLayers.of_model(model), dtype=torch.float32)
    kinds = {name: type(delta).__name__ for name, delta in deltas.items() if "layers.0." in name}
    assert kinds["model.layers.0.mlp.experts"] == kinds["model.layers.0.mlp.gate"] == "ParameterDelta"
    assert kinds["model.layers.0.self_attn.q_proj"] == "LoraDelta"
    manager = LoraModelManager(model, slots=1, dtype=torch.float32)
    manager.load(0, deltas)
    with manager.using(LoraMapping([(0, LENGTH)])):
        torch.testing.assert_close(logits(model, ids), logits(adapted, ids), rtol=0, atol=1e-5)


def test_the_base_is_untouched_by_adapters_of_other_steps(tmp_path: Path) -> None:
    """Its tokens beside those of one adapter, while another adapter is in the next slot."""
    tuned("qwen3_moe", tmp_path, 1, **TARGETS["experts"])
    model, ids = copy_of("qwen3_moe"), prompts(2)
    before, manager = logits(model, ids[:1]), LoraModelManager(model, slots=3, dtype=torch.float32)
    deltas = load_folder_deltas(tmp_path, model, LinearLayers.of_model(model), dtype=torch.float32)
    for slot in range(3):
        manager.load(slot, deltas)
    with manager.using(LoraMapping([(0, LENGTH)], num_base_tokens=LENGTH)):
        torch.testing.assert_close(logits(model, ids)[:1], before, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["qwen3_moe", "llama4_text"])
def test_an_emptied_slot_leaves_the_base(kind: str, tmp_path: Path) -> None:
    tuned(kind, tmp_path, 1, **TARGETS["experts"])
    model, ids = copy_of(kind), prompts(1)
    deltas = load_folder_deltas(tmp_path, model, LinearLayers.of_model(model), dtype=torch.float32)
    before, manager = logits(model, ids), LoraModelManager(model, slots=2, dtype=torch.float32)
    manager.load(1, deltas)
    assert manager.bytes == sum(delta.bytes for delta in deltas.values())
    manager.load(1, {})
    with manager.using(LoraMapping([(1, LENGTH)])):
        assert torch.equal(logits(model, ids), before)
    manager.load(1, deltas)
    manager.clear(1)
    assert manager.bytes == 0


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss"])
def test_the_factors_are_those_of_peft(kind: str, tmp_path: Path) -> None:
    adapted = tuned(kind, tmp_path, 1, **TARGETS["other ranks"])
    model = model_of(kind)
    deltas = load_folder_deltas(tmp_path, model, LinearLayers.of_model(model), dtype=torch.float32)
    wrapper = adapted.base_model.model.model.layers[1].mlp.experts
    delta = deltas["model.layers.1.mlp.experts"]
    assert isinstance(delta, ParameterDelta)
    assert (wrapper.parameter_name, delta.rank) == ("down_proj", 3)
    for one in (wrapper, wrapper.base_layer):
        change = delta.factors[one.parameter_name].dense(transposed=kind == "gpt_oss")
        torch.testing.assert_close(change, one.get_delta_weight("default"))


def test_a_blend_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    layers = LinearLayers.of_model(model_of("qwen3_moe"))
    parts = []
    for n, targets in enumerate(("experts", "one parameter")):
        tuned("qwen3_moe", tmp_path / str(n), n, **TARGETS[targets])
        deltas = load_folder_deltas(tmp_path / str(n), model_of("qwen3_moe"), layers, dtype=torch.float32)
        parts.append(deltas["model.layers.0.mlp.experts"])
    total = ParameterDelta.weighted_sum([(parts[0], 0.7), (parts[1], -0.4)])
    assert total.rank == 6
    for name, factors in total.factors.items():
        wanted = 0.7 * parts[0].factors[name].dense(transposed=False)
        if name in parts[1].factors:
            wanted = wanted - 0.4 * parts[1].factors[name].dense(transposed=False)
        torch.testing.assert_close(factors.dense(transposed=False), wanted)


EXPERT_LAYER = "model.layers.0.mlp.experts"


@pytest.mark.parametrize(
    ("module", "shape", "targets", "message"),
    [
        (EXPERT_LAYER, LoraShape(2, 32, 24, 8), "experts.down_proj", "16 rows of lora_A, not 8, .*4 experts"),
        (EXPERT_LAYER, LoraShape(2, 32, 48, 4), "experts.down_proj", r"has shape \(32, 24\), not \(32, 48\)"),
        (f"{EXPERT_LAYER}.base_layer", LoraShape(2, 32, 24, 4), "experts.down_proj", "None of the adapter's"),
        (
            "model.embed_tokens",
            LoraShape(2, 64, 32),
            "embed_tokens.weight",
            "cannot be changed for some tokens",
        ),
    ],
)
def test_what_does_not_fit_is_refused(module: str, shape: LoraShape, targets: str, message: str) -> None:
    layers = LinearLayers.of_model(model_of("qwen3_moe"))
    settings = LoraSettings(r=2, target_parameters=(targets,))
    with pytest.raises(AdapterIncompatibleError, match=message):
        check_fit({module: shape}, layers, settings)


def test_names_of_the_whole_model_are_found_in_its_text_part() -> None:
    layers = LinearLayers.of_model(model_of("llama4_text"))
    settings = LoraSettings(target_parameters=("experts.gate_up_proj", "experts.down_proj"))
    for form in ("model.language_model.layers.1", "model.layers.1", "language_model.model.layers.1"):
        for wrapped, leaf in ((".base_layer", "gate_up_proj"), ("", "down_proj")):
            found = layers.find_adapted(f"{form}.feed_forward.experts{wrapped}", settings)
            assert found == (
                f"model.layers.1.feed_forward.experts.{leaf}",
                f"{form}.feed_forward.experts.{leaf}",
            )
    assert layers.find_adapted("model.layers.9.feed_forward.experts", settings) is None


def test_parameters_that_are_asked_for_must_have_weights() -> None:
    layers = LinearLayers.of_model(model_of("qwen3_moe"))
    settings = LoraSettings(r=2, target_parameters=("experts.down_proj",))
    adapter = {EXPERT_LAYER: LoraShape(2, 32, 24, 4)}
    check_fit(adapter, layers, settings)
    with pytest.raises(AdapterInvalidError, match=r"asks for 1 layers.*layers\.1\.mlp\.experts\.down_proj"):
        check_fit(adapter, layers, settings, targets=True)


def test_pefts_order_of_an_experts_columns() -> None:
    """An expert's rows of lora_A adjoin; its columns of lora_B are as far apart as there are experts."""
    a = torch.arange(4.0)[:, None]  # two experts of rank 2
    factors = ExpertFactors.of_peft(a, torch.tensor([[10.0, 20.0, 11.0, 21.0]]), 2)
    assert factors.a[:, :, 0].tolist() == [[0, 1], [2, 3]]
    assert factors.b[:, 0].tolist() == [[10, 11], [20, 21]]
