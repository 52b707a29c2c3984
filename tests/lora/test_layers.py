"""The layers against PEFT, on four architectures."""

from functools import partial
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapterhub.base.loading import Base, load_base
from adapterhub.errors import AdapterIncompatibleError, AdapterInvalidError
from adapterhub.lora.delta import LoraDelta
from adapterhub.lora.loading import load_folder_deltas
from adapterhub.lora.mapping import LoraMapping
from adapterhub.lora.model_manager import LoraModelManager
from adapterhub.peft_format.safetensors_header import read_header
from tests.tiny import ALL_LINEAR, make_adapter, make_base

KINDS = ["llama", "mistral", "qwen2", "gpt2"]
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 50, 60], [60, 50, 10, 9, 8, 7, 6, 5]])
SETTINGS = {
    "lora": {},
    "rslora": {"use_rslora": True, "r": 16},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": "8", "alpha_pattern": "3"},
    "all": {"use_rslora": True, "use_dora": True, "r": 64, "rank_pattern": "8", "alpha_pattern": "3"},
}
# One pattern for a kind of layer everywhere, one for a single layer; PEFT warns of patterns that match nothing.
PATTERNS = {
    "gpt2": ["c_attn", "h.1.mlp.c_proj"],
    **{kind: ["q_proj", "layers.1.mlp.down_proj"] for kind in KINDS[:3]},
}


def with_patterns(kind: str, settings: dict[str, object]) -> dict[str, object]:
    return {
        name: dict.fromkeys(PATTERNS[kind], int(value)) if isinstance(value, str) else value
        for name, value in settings.items()
    }


@pytest.fixture(scope="module", params=KINDS)
def base_folder(request, tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("bases") / request.param, request.param)


def layers_of(base: Base) -> LoraModelManager:
    return LoraModelManager(base.model, slots=4, dtype=torch.float32)


def logits(base: Base, layers: LoraModelManager, slot: int | None) -> torch.Tensor:
    tokens = None if slot is None else LoraMapping([(slot, IDS.numel())])
    with torch.inference_mode(), layers.using(tokens):
        result: torch.Tensor = base.model(input_ids=IDS).logits
    return result


def load(base: Base, layers: LoraModelManager, slot: int, folder: Path) -> None:
    layers.load(slot, load_folder_deltas(folder, base.model, base.linear_layers, dtype=torch.float32))


def test_a_layer_that_is_kept_in_float32_has_its_adapters_so_too(base_folder: Path):
    """As some routers are in a model of bfloat16; their inputs are float32."""
    base = load_base(base_folder, quantization=None, device="cpu")
    name, (out_features, in_features) = next(iter(base.linear_layers.shapes.items()))
    x, a, b = torch.randn(3, in_features), torch.randn(2, in_features), torch.randn(out_features, 2)
    delta = LoraDelta(a, b).to(torch.bfloat16)
    layers = LoraModelManager(base.model, slots=2, dtype=torch.bfloat16)
    with torch.inference_mode():
        expected = base.model.get_submodule(name)(x) + x @ delta.a.T.float() @ delta.b.T.float()
        layers.load(1, {name: delta})
        with layers.using(LoraMapping([(1, 3)])):
            assert torch.allclose(base.model.get_submodule(name)(x), expected, atol=1e-4)


def test_unwrapped_the_model_is_its_own(base_folder: Path, tmp_path: Path):
    base = load_base(base_folder, quantization=None, device="cpu")
    modules, layers = dict(base.model.named_modules()), layers_of(base)
    load(base, layers, 0, make_adapter(tmp_path, base_folder))
    assert layers.bytes
    layers.unwrap()
    assert dict(base.model.named_modules()) == modules
    assert layers.bytes == 0


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_logits_equal_pefts(base_folder: Path, tmp_path: Path, settings):
    kind = base_folder.name
    adapter = make_adapter(
        tmp_path, base_folder, target_modules=ALL_LINEAR[kind], **with_patterns(kind, settings)
    )
    plain = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
    with torch.inference_mode():
        bare = plain(input_ids=IDS).logits
        wanted = PeftModel.from_pretrained(plain, adapter).eval()(input_ids=IDS).logits

    base = load_base(base_folder, quantization=None, device="cpu")
    layers = layers_of(base)
    load(base, layers, 2, adapter)

    assert (wanted - bare).abs().max() > 0.5, (
        "the adapter must change the answer for the test to mean anything"
    )
    assert (logits(base, layers, 2) - wanted).abs().max() <= 1e-4
    assert torch.equal(logits(base, layers, None), bare)


def test_on_a_4_bit_base_too(tmp_path: Path, tiny_base: Path):
    adapter = make_adapter(tmp_path, tiny_base, target_modules=ALL_LINEAR["llama"], use_dora=True)
    load_unpacked = partial(load_base, tiny_base, compute_dtype="float32", training=True)
    reference = PeftModel.from_pretrained(load_unpacked().model, adapter).eval()
    with torch.inference_mode():
        wanted = reference(input_ids=IDS).logits
    base = load_unpacked()
    layers = layers_of(base)
    load(base, layers, 2, adapter)
    assert (logits(base, layers, 2) - wanted).abs().max() <= 1e-4


def test_the_base_answers_bit_for_bit_as_before(tiny_base: Path, tiny_adapters: dict[str, Path]):
    base = load_base(tiny_base)
    layers = layers_of(base)
    before = logits(base, layers, None)
    for slot, folder in enumerate(tiny_adapters.values()):
        load(base, layers, slot, folder)
        assert not torch.equal(logits(base, layers, slot), before)
    assert torch.equal(logits(base, layers, None), before)
    layers.clear(0)
    assert torch.equal(logits(base, layers, 0), before)


def test_a_failing_forward_pass_does_not_affect_the_next_one(tiny_base: Path, tiny_adapters: dict[str, Path]):
    base = load_base(tiny_base)
    layers = layers_of(base)
    before = logits(base, layers, None)
    load(base, layers, 0, tiny_adapters["json"])
    with pytest.raises(ZeroDivisionError), layers.using(LoraMapping([(0, IDS.numel())])):
        raise ZeroDivisionError
    assert torch.equal(logits(base, layers, None), before)


def test_contexts_nest(tiny_base: Path, tiny_adapters: dict[str, Path]):
    base = load_base(tiny_base)
    layers = layers_of(base)
    before = logits(base, layers, None)
    load(base, layers, 0, tiny_adapters["json"])
    adapted = logits(base, layers, 0)
    with torch.inference_mode(), layers.using(LoraMapping([(0, IDS.numel())])):
        assert torch.equal(logits(base, layers, None), before)
        assert torch.equal(base.model(input_ids=IDS).logits, adapted)
    assert not torch.equal(adapted, before)


def test_an_adapter_for_another_architecture_is_refused(tmp_path: Path, tiny_base: Path):
    adapter = make_adapter(tmp_path / "a", make_base(tmp_path / "gpt2", "gpt2"))
    base = load_base(tiny_base)
    with pytest.raises(AdapterIncompatibleError, match="None of the adapter"):
        load_folder_deltas(adapter, base.model, base.linear_layers, dtype=torch.float32)


def test_an_adapter_for_another_width_is_refused(tmp_path: Path, tiny_base: Path):
    adapter = make_adapter(tmp_path / "a", make_base(tmp_path / "wide", hidden_size=128))
    base = load_base(tiny_base)
    with pytest.raises(AdapterIncompatibleError, match="has shape"):
        load_folder_deltas(adapter, base.model, base.linear_layers, dtype=torch.float32)


def test_damaged_weights_are_refused(tmp_path: Path, tiny_base: Path):
    adapter = make_adapter(tmp_path / "a", tiny_base)
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    base = load_base(tiny_base)
    with pytest.raises(AdapterInvalidError, match="cut short"):
        load_folder_deltas(adapter, base.model, base.linear_layers, dtype=torch.float32)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path, tiny_base: Path, monkeypatch):
    adapter = make_adapter(tmp_path / "a", tiny_base)
    weights = adapter / "adapter_model.safetensors"
    header = read_header(weights)
    weights.write_bytes(weights.read_bytes()[:-8])
    monkeypatch.setattr("adapterhub.lora.loading.read_header", lambda path, **_: header)
    base = load_base(tiny_base)
    with pytest.raises(AdapterInvalidError, match="shorter"):
        load_folder_deltas(adapter, base.model, base.linear_layers, dtype=torch.float32)


@pytest.mark.parametrize("loaded", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_factors_of_any_dtype_are_rounded_once(tmp_path: Path, tiny_base: Path, stored, loaded):
    adapter = make_adapter(tmp_path / "a", tiny_base, r=8, lora_alpha=3)
    weights = adapter / "adapter_model.safetensors"
    tensors = {name: tensor.to(stored) for name, tensor in load_file(weights).items()}
    save_file(tensors, weights)
    base = load_base(tiny_base)
    deltas = load_folder_deltas(adapter, base.model, base.linear_layers, dtype=loaded)
    assert 2 * len(deltas) == len(tensors)
    for name, delta in deltas.items():
        a, b = (tensors[f"base_model.model.{name}.lora_{part}.weight"].float() for part in "AB")
        assert torch.equal(delta.a, a.to(loaded))
        assert torch.equal(delta.b, (b * (3 / 8)).to(loaded))


def test_loaded_weights_do_not_change_with_the_file(tmp_path: Path, tiny_base: Path):
    adapter = make_adapter(tmp_path / "a", tiny_base)
    base = load_base(tiny_base, quantization=None)
    deltas = load_folder_deltas(adapter, base.model, base.linear_layers, dtype=torch.float32)
    before = {name: (delta.a.clone(), delta.b.clone()) for name, delta in deltas.items()}
    weights = adapter / "adapter_model.safetensors"
    with weights.open("r+b") as file:  # in place, as no careful program does
        file.write(bytes(weights.stat().st_size))
    assert all(torch.equal(delta.a, before[name][0]) for name, delta in deltas.items())
    assert all(torch.equal(delta.b, before[name][1]) for name, delta in deltas.items())
