"""Stored blends: PEFT computes the same from the files, and invalid input stores nothing."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from adapterhub import AdapterRegistry
from adapterhub.base.loading import load_base
from adapterhub.errors import (
    AdapterHubError,
    AdapterIncompatibleError,
    AdapterNotFoundError,
    InvalidRequestError,
)
from adapterhub.lora.blending.methods import BLEND_METHODS, BlendSettings
from adapterhub.lora.blending.registering import blend_adapters
from adapterhub.lora.loading import load_adapter_deltas
from adapterhub.lora.mapping import LoraMapping
from adapterhub.lora.model_manager import LoraModelManager
from adapterhub.lora.request import BlendedLoraRequest, LoraRequest, StoredLoraRequest
from tests.registry.maker import content
from tests.tiny import ALL_LINEAR, ATTENTION, make_adapter, make_base

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 50, 60]])
WEIGHTS = {"json": 0.7, "support": -0.3}


@pytest.fixture
def registry(tmp_path: Path, tiny_base: Path, tiny_adapters: dict[str, Path]) -> AdapterRegistry:
    registry = AdapterRegistry(tmp_path / "registry")
    for name, folder in tiny_adapters.items():
        registry.register(
            name,
            folder,
            base=tiny_base,
            quantization="nf4",
            prompt={"system": f"I am {name}."},
            routing={"examples": [f"a request for {name}"]},
        )
    return registry


def logits(base_folder: Path, request: LoraRequest) -> torch.Tensor:
    base = load_base(base_folder, quantization=None, device="cpu")
    layers = LoraModelManager(base.model, slots=1, dtype=torch.float32)
    layers.load(0, load_adapter_deltas(request, base.model, base.linear_layers, dtype=torch.float32))
    with torch.inference_mode(), layers.using(LoraMapping([(0, IDS.numel())])):
        result: torch.Tensor = base.model(input_ids=IDS).logits
    return result


def pefts_logits(base_folder: Path, adapter: Path) -> torch.Tensor:
    plain = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    with torch.inference_mode():
        return PeftModel.from_pretrained(plain, adapter).eval()(input_ids=IDS).logits


def asked(registry: AdapterRegistry, weights: dict[str, float]) -> BlendedLoraRequest:
    cards = [(registry.resolve(ref), weight) for ref, weight in weights.items()]
    return BlendedLoraRequest.of(
        "blend", [(StoredLoraRequest(c.ref, c.digest, registry.folder(c)), weight) for c, weight in cards]
    )


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "gpt2"])
def test_peft_and_the_request_compute_the_same(kind: str, tmp_path: Path):
    """Ranks that differ by layer and by part, rsLoRA, patterns and different targets, on four architectures."""
    base, registry = make_base(tmp_path / kind, kind), AdapterRegistry(tmp_path / "registry")
    first = ATTENTION[kind][0]
    settings = {
        "a": {"r": 4, "alpha_pattern": {first: 3}},
        "b": {"r": 16, "use_rslora": True, "target_modules": ALL_LINEAR[kind]},
        "c": {"r": 8, "rank_pattern": {first: 32}, "layers_to_transform": [1]},
    }
    for seed, (name, setting) in enumerate(settings.items()):
        registry.register(name, make_adapter(tmp_path / name, base, seed=seed, **setting), base=base)
    weights = {"a": 0.7, "b": -0.4, "c": 0.5}
    card = blend_adapters(registry, "blend", weights)
    wanted = logits(base, asked(registry, weights))
    assert (pefts_logits(base, registry.folder(card)) - wanted).abs().max() <= 1e-4
    stored = StoredLoraRequest(card.ref, card.digest, registry.folder(card))
    assert (logits(base, stored) - wanted).abs().max() <= 1e-5
    assert card.peft.rank_pattern == card.peft.alpha_pattern != {}
    assert card.warnings == ()


@pytest.mark.parametrize("method", BLEND_METHODS)
def test_every_method_gives_an_adapter_that_peft_loads(method, registry, tiny_base: Path):
    settings = BlendSettings(
        method, rank=None if method == "cat" else 5, density=0.5 if "ties" in method else None
    )
    card = blend_adapters(registry, "blend", WEIGHTS, settings)
    folder = registry.folder(card)
    found = logits(tiny_base, StoredLoraRequest(card.ref, card.digest, folder))
    assert (pefts_logits(tiny_base, folder) - found).abs().max() <= 1e-4
    assert card.peft.r == (4 + 8 if method == "cat" else 5)
    assert (card.peft.lora_alpha, card.peft.use_rslora, card.peft.dtype) == (card.peft.r, False, "F32")
    assert registry.verify("blend") == []


def test_svd_at_full_rank_is_the_sum(registry, tiny_base: Path):
    card = blend_adapters(registry, "blend", WEIGHTS, BlendSettings("svd", rank=12))
    stored = StoredLoraRequest(card.ref, card.digest, registry.folder(card))
    assert (logits(tiny_base, stored) - logits(tiny_base, asked(registry, WEIGHTS))).abs().max() <= 1e-4


def test_the_card_has_the_lineage(registry):
    card = blend_adapters(
        registry, "blend", WEIGHTS, BlendSettings("dare_ties", rank=3, density=0.4, seed=9), tags=["t"]
    )
    parents = [registry.resolve("json"), registry.resolve("support")]
    assert [(p.name, p.version, p.digest, p.weight) for p in card.lineage.parents] == [
        ("json", 1, parents[0].digest, 0.7),
        ("support", 1, parents[1].digest, -0.3),
    ]
    assert card.lineage.method == "blend"
    assert card.lineage.settings == {"method": "dare_ties", "rank": 3, "density": 0.4, "seed": 9}
    assert card.description == "A blend (dare_ties) of json@1:0.7+support@1:-0.3."
    assert (card.prompt, card.base, card.tags) == (parents[0].prompt, parents[0].base, ("t",))
    assert card.routing.examples == ()  # or the router could not tell it from its parts
    assert registry.get("blend") == card


def test_fields_of_the_caller_override_the_defaults(registry):
    card = blend_adapters(registry, "blend", WEIGHTS, description="Mine.", prompt={"system": "Another."})
    assert (card.description, card.prompt.system) == ("Mine.", "Another.")


def test_the_base_need_not_be_on_this_machine(tmp_path: Path):
    base, registry = make_base(tmp_path / "base"), AdapterRegistry(tmp_path / "registry")
    for seed, name in enumerate(WEIGHTS):
        registry.register(name, make_adapter(tmp_path / name, base, seed=seed), base=base)
    before = registry.resolve("json").base
    base.rename(tmp_path / "gone")
    card = blend_adapters(registry, "blend", WEIGHTS)
    assert card.base == before
    assert card.base.fingerprint is not None
    assert any("not checked" in warning for warning in card.warnings)
    assert "model.layers.0.self_attn.q_proj" in card.peft.target_modules


def test_the_same_blend_has_the_same_digest(registry):
    settings = BlendSettings("dare_ties", density=0.5, seed=3)
    digests = [blend_adapters(registry, "blend", WEIGHTS, settings).digest for _ in range(2)]
    other = blend_adapters(registry, "blend", WEIGHTS, BlendSettings("dare_ties", density=0.5, seed=4))
    assert digests[0] == digests[1] != other.digest
    assert other.version == 3


def test_one_part_alone_is_the_same_adapter_and_may_use_dora(registry, tmp_path: Path, tiny_base: Path):
    dora = registry.register(
        "dora", make_adapter(tmp_path / "dora", tiny_base, use_dora=True), base=tiny_base
    )
    copy = blend_adapters(registry, "copy", {"dora": 1})
    assert copy.digest == dora.digest
    before = content(registry.root)
    for weights in ({"dora": 0.5}, {"dora": 1, "json": 1}):
        with pytest.raises(AdapterIncompatibleError, match="DoRA"):
            blend_adapters(registry, "blend", weights)
    assert content(registry.root) == before


@pytest.mark.parametrize(
    ("name", "weights", "error"),
    [
        ("auto", WEIGHTS, InvalidRequestError),
        ("a:b", WEIGHTS, InvalidRequestError),
        ("blend", {}, InvalidRequestError),
        ("blend", {"json": float("nan")}, InvalidRequestError),
        ("blend", {"json": 1, "json@1": 1}, InvalidRequestError),
        ("blend", {"json": 1, "jsn": 1}, AdapterNotFoundError),
        ("blend", {"json": 1, "other": 1}, AdapterIncompatibleError),
        ("blend", {"json": 1, "unknown": 1}, AdapterIncompatibleError),
    ],
)
def test_invalid_input_changes_nothing(registry, tmp_path, tiny_base, name, weights, error):
    if "other" in weights:  # another base of the same shape
        base = make_base(tmp_path / "other-base", seed=5)
        registry.register("other", make_adapter(tmp_path / "other", base), base=base)
    if "unknown" in weights:  # another base, and the card does not know it
        base = make_base(tmp_path / "wide", hidden_size=128)
        registry.register("unknown", make_adapter(tmp_path / "unknown", base))
    before = content(registry.root)
    with pytest.raises(error):
        blend_adapters(registry, name, weights)
    assert content(registry.root) == before
    assert not list((registry.root / ".staging").iterdir())


def test_damaged_parts_are_refused(registry):
    weights = registry.folder(registry.resolve("json")) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(AdapterHubError, match="json@1 have changed"):
        blend_adapters(registry, "blend", WEIGHTS)
    assert "blend" not in [card.name for card in registry.list()]


def test_target_modules_are_short_where_every_layer_of_a_kind_is_targeted(registry):
    card = blend_adapters(registry, "blend", WEIGHTS)
    config = json.loads((registry.folder(card) / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["rank_pattern"] == {}
