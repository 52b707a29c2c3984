"""Vision-language checkpoints: texts are answered as the whole model answers them, with adapters of either form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from adapterhub import AdapterHub, AdapterIncompatibleError, AdapterRegistry, EchoEngine, InvalidRequestError
from adapterhub.base import LinearLayers, load_base
from adapterhub.base.auto_class import text_class
from adapterhub.config import EngineLimits
from adapterhub.engine import BatchingEngine
from adapterhub.export import export_peft, merge_adapter, merge_quantized
from adapterhub.training import FinetuneConfig, finetune
from tests.engine.maker import Reference, prompt_of, request, stored_request
from tests.vision import make_vision_adapter, make_vision_base

OFTEN = ["gemma4", "qwen3_5", "llama4", "qwen2_5_vl"]
MORE = ["gemma3", "mistral3", "qwen2_vl", "qwen3_vl", "llava", "internvl", "smolvlm", "lfm2_vl"]
KINDS = [*OFTEN, *(pytest.param(kind, marks=pytest.mark.slow) for kind in MORE)]
ONLY_WHOLE = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl"}
"""Those for whose decoder alone transformers has no class."""
LOADED_ALONE = {"qwen3_5", "llama4"}
"""Those whose decoder alone transformers loads from the whole checkpoint."""
PROMPTS = [prompt_of(1, 1), prompt_of(2, 9), prompt_of(3, 30)]
TOKENS = 12


@dataclass(frozen=True)
class World:
    """A checkpoint, and adapters that were trained on the whole model and on its decoder alone.

    Attributes:
        base: The checkpoint.
        adapters: "whole" has weights for every layer, those of the vision tower too; "text" has those of the decoder,
            under the names that they have in the decoder alone, if transformers has a class for it.
    """

    base: Path
    adapters: dict[str, Path]

    def reference(self, name: str) -> Reference:
        """PEFT on the form of the base that an adapter was trained on."""
        model = whole_model(self.base)
        return Reference(model if name == "whole" else decoder_of(model), {name: self.adapters[name]})


def whole_model(base: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32).eval()


def decoder_of(whole: Any) -> Any:
    """A causal language model with the decoder and the head of a whole model."""
    text = AutoModelForCausalLM.from_config(whole.config.get_text_config())
    text.get_decoder().load_state_dict(whole.get_decoder().state_dict())
    text.get_output_embeddings().load_state_dict(whole.get_output_embeddings().state_dict())
    return text.eval()


def layers_of(base: Path, *, whole: bool = False) -> LinearLayers:
    layers = LinearLayers.of_folder(base, whole=whole)
    assert layers is not None
    assert layers.beside
    return layers


def every_layer(base: Path) -> list[str]:
    """The linear layers of the whole model but for its head."""
    layers = layers_of(base, whole=True)
    return [name for name in (*layers.shapes, *layers.beside) if not name.endswith("lm_head")]


def decoder_layers(base: Path) -> list[str]:
    """The last parts of the names of the decoder's linear layers, which a vision tower may have too."""
    names = {name.rpartition(".")[2] for name in layers_of(base).shapes}
    return sorted(names - {"lm_head"})


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    root, kind = tmp_path_factory.mktemp("vision"), request.param
    base = make_vision_base(root / "base", kind)
    whole = whole_model(base)
    adapters = {"whole": make_vision_adapter(root / "whole", whole, every_layer(base))}
    if kind not in ONLY_WHOLE:
        adapters["text"] = make_vision_adapter(root / "text", decoder_of(whole), decoder_layers(base), seed=2)
    return World(base, adapters)


@pytest.fixture(scope="module")
def engine(world: World) -> Iterator[BatchingEngine]:
    base = load_base(world.base, quantization=None, device="cpu")
    engine = BatchingEngine(base, EngineLimits(max_loras=2))
    yield engine
    engine.close()


def test_texts_are_answered_as_by_transformers_and_peft(world: World, engine: BatchingEngine):
    adapters = {name: stored_request(name, folder) for name, folder in world.adapters.items()}
    asked = [(None, ids) for ids in PROMPTS] + [(name, ids) for name in adapters for ids in PROMPTS]
    references = {name: world.reference(name) for name in adapters}
    wanted = [references[name or "whole"].generate(name, ids, TOKENS) for name, ids in asked]
    got = engine.generate([request(ids, adapters[name] if name else None) for name, ids in asked])
    assert [list(one.token_ids) for (one,) in got] == wanted
    longest = wanted[2 :: len(PROMPTS)]  # the base and each adapter answer otherwise
    assert len({tuple(one) for one in longest}) == len(longest)


def test_adapters_of_either_form_are_registered(world: World, tmp_path: Path):
    registry = AdapterRegistry(tmp_path / "registry")
    cards = {name: registry.register(name, path, base=world.base) for name, path in world.adapters.items()}
    assert registry.verify() == []
    told = {name: [one for one in card.warnings if "no text passes" in one] for name, card in cards.items()}
    assert told.pop("whole")[0].startswith(f"{len(layers_of(world.base).beside)} of its ")
    assert not any(told.values())


def test_an_exported_adapter_is_loaded_as_its_readme_says(world: World, tmp_path: Path):
    registry, base = AdapterRegistry(tmp_path / "registry"), world.base
    for name, folder in world.adapters.items():
        if name == "text" and AutoConfig.from_pretrained(base).model_type not in LOADED_ALONE:
            continue
        registry.register(name, folder, base=base)
        export_peft(registry, name, tmp_path / name)
        readme = (tmp_path / name / "README.md").read_text()
        auto_class = getattr(transformers, re.findall(r"base = (\w+)\.from_pretrained", readme)[0])
        peft = PeftModel.from_pretrained(auto_class.from_pretrained(base), tmp_path / name)
        # PEFT passes over weights that it finds no layer for, and lora_B is zero without them.
        loaded = [one.count_nonzero() for layer, one in peft.named_parameters() if "lora_B" in layer]
        assert len(loaded) == len(load_file(folder / "adapter_model.safetensors")) / 2
        assert all(loaded)


def test_a_merge_writes_the_whole_checkpoint(world: World, tmp_path: Path):
    """PEFT's merge of the whole model is the reference; of an adapter of the decoder alone, the decoder's weights."""
    base = whole_model(world.base)
    for name, folder in world.adapters.items():
        report = merge_adapter(world.base, folder, tmp_path / name)
        assert report.verification is not None
        merged = whole_model(tmp_path / name)
        trained = base if name == "whole" else decoder_of(base)
        wanted = PeftModel.from_pretrained(trained, folder).merge_and_unload()
        if name == "whole":
            assert_equal(merged, wanted)
            base = whole_model(world.base)
        else:
            assert_equal(merged.get_decoder(), wanted.get_decoder())
            changed = {
                key for key, value in base.state_dict().items() if not value.equal(merged.state_dict()[key])
            }
            assert len(changed) == report.merged
            assert all("language_model" in key or "text_model" in key for key in changed)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["whole", "text"])
def test_adapters_of_experts_fit_in_either_form(form: str, tmp_path: Path):
    base = make_vision_base(tmp_path / "base", "qwen3_5_moe")
    auto = AutoModelForImageTextToText if form == "whole" else AutoModelForCausalLM
    trained, again = (auto.from_pretrained(base, dtype=torch.float32) for _ in range(2))
    experts = ["experts.gate_up_proj", "experts.down_proj"]
    adapter = make_vision_adapter(tmp_path / "adapter", trained, ["q_proj"], target_parameters=experts)
    card = (registry := AdapterRegistry(tmp_path / "registry")).register("a", adapter, base=base)
    engine = BatchingEngine(load_base(base, quantization=None, device="cpu"))
    stored = stored_request("a", registry.folder(card))
    got = [list(one.token_ids) for (one,) in engine.generate([request(ids, stored) for ids in PROMPTS])]
    engine.close()
    reference = Reference(again, {"a": adapter})
    assert got == [reference.generate("a", ids, TOKENS) for ids in PROMPTS]
    merge_adapter(base, adapter, tmp_path / "merged")
    assert_equal(
        auto.from_pretrained(tmp_path / "merged", dtype=torch.float32), reference.model.merge_and_unload()
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3_5", "qwen2_5_vl"])
def test_a_quantised_merge_is_of_the_whole_checkpoint(kind: str, tmp_path: Path):
    base = make_vision_base(tmp_path / "base", kind)
    adapter = make_vision_adapter(tmp_path / "adapter", whole_model(base), every_layer(base))
    merge_quantized(base, adapter, tmp_path / "nf4", "nf4")
    written = AutoModelForImageTextToText.from_pretrained(tmp_path / "nf4")
    assert {name for name, _ in written.named_modules()} == {
        name for name, _ in whole_model(base).named_modules()
    }
    served = load_base(tmp_path / "nf4", device="cpu")
    assert served.quantization == "nf4"
    assert served.linear_layers.beside.keys() == layers_of(base).beside.keys()


def assert_equal(model: torch.nn.Module, other: torch.nn.Module) -> None:
    weights, others = model.state_dict(), other.state_dict()
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], msg=name)


def test_a_fine_tune_is_registered_and_served(world: World, engine: BatchingEngine, tmp_path: Path):
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    (tmp_path / "data.jsonl").write_text(4 * (json.dumps({"messages": turns}) + "\n"))
    settings = {
        "name": "tuned",
        "base": str(world.base),
        "quantization": None,
        "data": {"train": str(tmp_path / "data.jsonl"), "validation_share": 0},
        "lora": {"r": 2, "target_modules": "all-linear"},
        "train": {"max_steps": 2, "batch_size": 2, "learning_rate": 0.1, "warmup": 0},
    }
    registry = AdapterRegistry(tmp_path / "registry")
    card = finetune(FinetuneConfig.model_validate(settings), registry)
    assert registry.verify() == []
    assert card.warnings == ()
    form = text_class(AutoConfig.from_pretrained(world.base)).from_pretrained(world.base, dtype=torch.float32)
    reference = Reference(form, {"tuned": registry.folder(card)})
    tuned = stored_request("tuned", registry.folder(card))
    got = [list(one.token_ids) for (one,) in engine.generate([request(ids, tuned) for ids in PROMPTS])]
    assert got == [reference.generate("tuned", ids, TOKENS) for ids in PROMPTS]


def test_an_adapter_of_the_vision_tower_alone_is_refused(tmp_path: Path):
    base = make_vision_base(tmp_path / "base", "gemma3")
    model = whole_model(base)
    adapter = make_vision_adapter(tmp_path / "adapter", model, r".*vision_tower.*\.(q_proj|v_proj)")
    with pytest.raises(AdapterIncompatibleError, match="vision tower only, which no text passes"):
        AdapterRegistry(tmp_path / "registry").register("a", adapter, base=base)


@pytest.mark.parametrize("kind", ["image", "image_url", "video", "input_audio"])
def test_what_is_no_text_is_refused(kind: str, tmp_path: Path):
    hub = AdapterHub(EchoEngine(), AdapterRegistry(tmp_path / "registry"))
    content = [{"type": "text", "text": "What is this?"}, {"type": kind, kind: "a file"}]
    with pytest.raises(
        InvalidRequestError, match=f"a part of type '{kind}'; only texts are answered"
    ) as caught:
        hub.generate([{"role": "user", "content": content}])
    assert "Describe it in words" in (caught.value.hint or "")
