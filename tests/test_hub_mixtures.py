"""Adapters of mixtures from end to end: PEFT trains, the registry checks, the hub serves a mixed batch as PEFT does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, GenerationConfig

from adapterhub import AdapterHub, AdapterIncompatibleError, AdapterRegistry
from adapterhub.base import LinearLayers, check_fit, load_base
from adapterhub.cli.registry import show
from adapterhub.config import EngineLimits
from adapterhub.engine import BatchingEngine
from adapterhub.errors import AdapterInvalidError, ConfigError
from adapterhub.export import merge_adapter
from adapterhub.lora.loading import load_folder_deltas, slot_weights
from adapterhub.lora.request import StoredLoraRequest
from adapterhub.peft_format import LoraSettings, LoraShape
from adapterhub.training import FinetuneConfig, finetune
from tests.tiny import make_adapter, make_base

# PEFT compares patterns with the names of modules for this warning, and with those of parameters when it uses them.
pytestmark = pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning")
PROMPTS = ("the quick brown fox", "one", "jumps over the lazy dog: one two three four")
TOKENS = 10
ADAPTERS: dict[str, dict[str, Any]] = {
    "all-linear": {"target_modules": "all-linear"},
    "experts": {
        "target_modules": ["o_proj"],
        "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
        "r": 2,
        "use_rslora": True,
    },
}
KINDS = ("qwen3_moe", "gpt_oss")


@dataclass(frozen=True)
class World:
    """A mixture, adapters for it in a registry, and a hub."""

    base: Path
    folders: dict[str, Path]
    hub: AdapterHub

    def peft(self, name: str | None) -> Any:
        model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        return PeftModel.from_pretrained(model, self.folders[name]).eval() if name else model.eval()


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp(request.param)
    base = make_base(root / "base", request.param)
    folders = {
        name: make_adapter(root / name, base, **settings, std=0.3) for name, settings in ADAPTERS.items()
    }
    registry = AdapterRegistry(root / "registry")
    for name, folder in folders.items():
        registry.register(name, folder, base=base)
    assert registry.verify() == []
    with AdapterHub(BatchingEngine(load_base(base, quantization=None, device="cpu")), registry) as hub:
        yield World(base, folders, hub)


def greedy(model: Any, prompt: list[int]) -> list[int]:
    model.generation_config.eos_token_id = None
    config = GenerationConfig(max_new_tokens=TOKENS, pad_token_id=0)
    with torch.inference_mode():
        ids = model.generate(input_ids=torch.tensor([prompt]), generation_config=config)
    return ids[0, len(prompt) :].tolist()


def served(world: World, requests: list[tuple[str, str | None]]) -> list[list[int]]:
    options = {"raw": True, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    answers = world.hub.generate_batch(
        [prompt for prompt, _ in requests], [name for _, name in requests], **options
    )
    return [list(answer.completions[0].token_ids) for answer in answers]


def test_a_mixed_batch_has_the_tokens_of_peft(world: World) -> None:
    requests = [(prompt, name) for prompt in PROMPTS for name in (None, *ADAPTERS)]
    tokenizer, models = world.hub.engine.tokenizer, {name: world.peft(name) for name in (None, *ADAPTERS)}
    wanted = [greedy(models[name], tokenizer.encode(prompt)) for prompt, name in requests]
    assert served(world, requests) == wanted
    assert len({tuple(one) for one in wanted}) > len(PROMPTS)  # the adapters matter


def test_a_blend_of_a_request_is_the_sum_of_merged_adapters(world: World) -> None:
    model = world.peft(None)
    base = {name: weight.clone() for name, weight in model.state_dict().items()}
    merged = [world.peft(name).merge_and_unload().state_dict() for name in ADAPTERS]
    weights = {name: base[name] + sum(0.5 * (one[name] - base[name]) for one in merged) for name in base}
    model.load_state_dict(weights)
    prompt = world.hub.engine.tokenizer.encode(PROMPTS[0])
    (blend,) = served(world, [(PROMPTS[0], "all-linear:0.5+experts:0.5")])
    assert blend == greedy(model, prompt)


def test_an_adapter_of_another_mixture_is_refused(world: World, tmp_path: Path) -> None:
    other = make_base(tmp_path / "base", "qwen3_moe", num_experts=2)
    registry = AdapterRegistry(tmp_path / "registry")
    with pytest.raises(AdapterIncompatibleError, match="experts in") as caught:
        registry.register("a", world.folders["experts"], base=other)
    assert "another number of experts" in str(caught.value.hint)


OLD_NAMES = {
    "qwen3_moe": ("mlp", ("gate_proj", "up_proj", "down_proj")),
    "mixtral": ("block_sparse_moe", ("w1", "w3", "w2")),
}


def old_adapter(folder: Path, kind: str, base: Path) -> Path:
    """As transformers 4 had the model: a linear layer for each expert's gate, up and down, and for the router."""
    block, (gate, up, down) = OLD_NAMES[kind]
    model = AutoModelForCausalLM.from_pretrained(base)
    generator, tensors = torch.Generator().manual_seed(1), {}
    for number, layer in enumerate(model.model.layers):
        experts, height, width = layer.mlp.experts.gate_up_proj.shape
        shapes = {"gate": (experts, width)}
        for expert in range(experts):
            shapes |= {f"experts.{expert}.{name}": (height // 2, width) for name in (gate, up)}
            shapes |= {f"experts.{expert}.{down}": (width, height // 2)}
        for module, (out_features, in_features) in shapes.items():
            name = f"base_model.model.model.layers.{number}.{block}.{module}"
            tensors[f"{name}.lora_A.weight"] = torch.randn(3, in_features, generator=generator) * 0.2
            tensors[f"{name}.lora_B.weight"] = torch.randn(out_features, 3, generator=generator) * 0.2
    LoraConfig(
        r=3, lora_alpha=5, target_modules=["gate", gate, up, down], task_type="CAUSAL_LM"
    ).save_pretrained(folder)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("kind", OLD_NAMES)
def test_an_adapter_of_single_experts_is_what_peft_makes_of_it(kind: str, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", kind)
    old, registry = old_adapter(tmp_path / "old", kind, base), AdapterRegistry(tmp_path / "registry")
    registry.register("old", old, base=base)
    assert registry.verify() == []
    with AdapterHub(BatchingEngine(load_base(base, quantization=None, device="cpu")), registry) as hub:
        world = World(base, {"old": old}, hub)
        prompt = hub.engine.tokenizer.encode(PROMPTS[0])
        wanted = [greedy(world.peft(name), prompt) for name in ("old", None)]
        assert served(world, [(PROMPTS[0], "old"), (PROMPTS[0], None)]) == wanted
    assert wanted[0] != wanted[1]
    merge_adapter(base, old, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).state_dict()
    for name, weight in world.peft("old").merge_and_unload().state_dict().items():
        torch.testing.assert_close(merged[name], weight, rtol=1e-6, atol=1e-6, msg=name)


def test_all_and_one_of_the_experts_are_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "qwen3_moe")
    layers = LinearLayers.of_folder(base)
    assert layers
    adapter = {
        "model.layers.0.mlp.experts": LoraShape(2, 64, 32, 4),
        "model.layers.0.mlp.experts.1.down_proj": LoraShape(2, 64, 32),
    }
    with pytest.raises(AdapterInvalidError, match="for one of its experts"):
        check_fit(adapter, layers, LoraSettings(r=2, target_parameters=("experts.down_proj",)))


def test_an_expert_that_the_base_lacks_is_refused(tmp_path: Path) -> None:
    layers = LinearLayers.of_folder(make_base(tmp_path / "base", "qwen3_moe"))
    assert layers
    name = "model.layers.0.mlp.experts.{}.down_proj"
    last = {name.format(3): LoraShape(2, 64, 32)}
    assert len(check_fit(last, layers, LoraSettings(r=2))) == 1
    with pytest.raises(AdapterIncompatibleError, match=r"experts\.4\.down_proj' is missing"):
        check_fit({**last, name.format(4): LoraShape(2, 64, 32)}, layers, LoraSettings(r=2))


def test_single_experts_that_take_too_much_memory_when_joined_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_base(tmp_path / "base", "qwen3_moe")
    old, layers = old_adapter(tmp_path / "old", "qwen3_moe", base), LinearLayers.of_folder(base)
    assert layers
    # rank 3 for each of 4 experts in 2 layers: twice that for gate and up (2 x 32 x 64), and down (64 x 32)
    size = 4 * 2 * 4 * (6 * (64 + 64) + 3 * (64 + 32))
    monkeypatch.setattr("adapterhub.peft_format.checks.MAX_WEIGHTS_BYTES", size)
    deltas = load_folder_deltas(old, None, layers, dtype=torch.float32)
    assert sum(one.bytes for name, one in deltas.items() if name.endswith("experts")) == size
    monkeypatch.setattr("adapterhub.peft_format.checks.MAX_WEIGHTS_BYTES", size - 1)
    with pytest.raises(AdapterIncompatibleError, match="once they are joined"):
        load_folder_deltas(old, None, layers, dtype=torch.float32)


def test_the_memory_of_experts_is_told_and_bounded(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapterhub.peft_format.checks.LARGE_SLOT_WEIGHTS", 2**10)
    registry = AdapterRegistry(tmp_path / "registry")
    registry.register("a", world.folders["experts"], base=world.base)
    # rank 2 for each of 4 experts in 2 layers, of 64 features, and gate and up together of twice 32
    weights = 2 * 4 * 2 * ((64 + 64) + (32 + 64))
    (warning,) = registry.resolve("a").warnings
    assert "'model.layers.0.mlp.experts'" in warning
    assert "MiB of a LoRA slot in 16 bits" in warning
    shown = CliRunner().invoke(show, ["a", "--registry", str(registry.root)]).output
    assert "o_proj, experts.down_proj, experts.gate_up_proj" in shown
    folder = registry.folder(registry.resolve("a"))
    assert slot_weights(StoredLoraRequest("a", "", folder)) == weights
    with pytest.raises(
        AdapterIncompatibleError, match="experts take 2 MiB of a LoRA slot, and the engine gives 1"
    ):
        EngineLimits(max_slot_weights_mib=1).check_slot_weights(2 * 2**20)


def finetuning(base: Path, folder: Path, **lora: Any) -> FinetuneConfig:
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    (folder / "data.jsonl").write_text(4 * (json.dumps({"messages": turns}) + "\n"))
    return FinetuneConfig.model_validate(
        {
            "name": "tuned",
            "base": str(base),
            "quantization": None,
            "lora": {"r": 2, **lora},
            "data": {"train": str(folder / "data.jsonl"), "validation_share": 0},
            "train": {"max_steps": 2, "batch_size": 2, "learning_rate": 0.005, "warmup": 0},
        }
    )


def test_a_fine_tune_of_experts_is_registered_served_and_merged(tmp_path: Path) -> None:
    """The names of a dense layer are those of the experts for PEFT."""
    base = make_base(tmp_path / "base", "qwen3_moe", mlp_only_layers=[0])
    registry = AdapterRegistry(tmp_path / "registry")
    card = finetune(finetuning(base, tmp_path), registry)
    assert set(card.peft.target_parameters) == {"gate_up_proj", "down_proj"}
    assert registry.verify() == []
    with AdapterHub(BatchingEngine(load_base(base, quantization=None, device="cpu")), registry) as hub:
        world = World(base, {"tuned": registry.folder(card)}, hub)
        prompt = hub.engine.tokenizer.encode(PROMPTS[0])
        wanted = [greedy(world.peft(name), prompt) for name in ("tuned", None)]
        assert served(world, [(PROMPTS[0], "tuned"), (PROMPTS[0], None)]) == wanted
    merge_adapter(base, registry.folder(card), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    assert greedy(merged, prompt) == wanted[0] != wanted[1]


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"dropout": 0.1}, "without lora.dropout"),
        ({"dora": True}, "and lora.dora"),
        ({"target_modules": ["up_proj"]}, "without also targeting gate_proj"),
    ],
)
def test_what_peft_has_not_for_experts_is_refused(tmp_path: Path, lora: dict[str, Any], message: str) -> None:
    base = make_base(tmp_path / "base", "qwen3_moe", mlp_only_layers=[0])
    with pytest.raises(ConfigError, match=message):
        finetune(finetuning(base, tmp_path, **lora), AdapterRegistry(tmp_path / "registry"))
