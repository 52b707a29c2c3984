"""What registers is what serves: registering, verifying, serving, merging and training agree on which names fit a base.

The adapters of each case hold the same weights under other names; PEFT with the names of the model is the reference.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adapterhub import AdapterHub, AdapterIncompatibleError, AdapterRegistry
from adapterhub.base import load_base
from adapterhub.engine import BatchingEngine
from adapterhub.errors import AdapterHubError
from adapterhub.export import merge_adapter
from adapterhub.lora.blending import blend_adapters
from adapterhub.training import FinetuneConfig, finetune
from tests.tiny import make_adapter, make_base

PROMPT = "the quick brown fox"
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class World:
    """A base, an adapter under the model's names, and a hub whose registry a test may fill."""

    base: Path
    adapter: Path
    hub: AdapterHub


def world(root: Path, kind: str, **settings: object) -> World:
    base = make_base(root / "base", kind)
    adapter = make_adapter(root / "adapter", base, **settings)
    engine = BatchingEngine(load_base(base, quantization=None, device="cpu"))
    return World(base, adapter, AdapterHub(engine, AdapterRegistry(root / "unused")))


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory):
    one = world(
        tmp_path_factory.mktemp("gemma3"), "gemma3", target_modules=r".*language_model.*\.(q_proj|v_proj)"
    )
    yield one
    one.hub.close()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    one = world(tmp_path_factory.mktemp("llama"), "llama")
    yield one
    one.hub.close()


def logprobs(logits: torch.Tensor) -> list[tuple[int, float]]:
    top = logits.log_softmax(-1).max(-1)
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def served(one: World, registry: AdapterRegistry, ref: str) -> list[tuple[int, float]]:
    hub = AdapterHub(one.hub.engine, registry)
    answer = hub.generate(PROMPT, ref, raw=True, max_tokens=6, temperature=0, logprobs=0, ignore_eos=True)
    (completion,) = answer.completions
    return [(t, p.logprob) for t, p in zip(completion.token_ids, completion.logprobs, strict=True)]


def greedy(model: torch.nn.Module, ids: list[int]) -> list[tuple[int, float]]:
    found: list[tuple[int, float]] = []
    with torch.inference_mode():
        for _ in range(6):
            found += logprobs(model(input_ids=torch.tensor([ids])).logits[:, -1].float())
            ids = [*ids, found[-1][0]]
    return found


def pefts(one: World, adapter: Path) -> list[tuple[int, float]]:
    model = AutoModelForCausalLM.from_pretrained(one.base, dtype=torch.float32)
    return greedy(PeftModel.from_pretrained(model, adapter).eval(), one.hub.engine.tokenizer.encode(PROMPT))


def same(found: list[tuple[int, float]], wanted: list[tuple[int, float]]) -> bool:
    return [t for t, _ in found] == [t for t, _ in wanted] and [p for _, p in found] == pytest.approx(
        [p for _, p in wanted], abs=1e-3
    )


def renamed(adapter: Path, out: Path, pattern: str, replacement: str) -> Path:
    shutil.copytree(adapter, out)
    tensors = {
        re.sub(pattern, replacement, name): tensor for name, tensor in load_file(adapter / WEIGHTS).items()
    }
    save_file(tensors, out / WEIGHTS)
    return out


@pytest.mark.parametrize("given", [True, False], ids=["checked", "unchecked"])
def test_the_models_names_where_the_files_have_others(gemma3: World, tmp_path: Path, given: bool):
    registry = AdapterRegistry(tmp_path / "registry")
    registry.register("a", gemma3.adapter, base=gemma3.base if given else None)
    assert registry.verify() == []
    assert same(served(gemma3, registry, "a"), pefts(gemma3, gemma3.adapter))


OLD_NAMES = {
    "before 4.52": "model.language_model.model.layers",
    "inner": "model.language_model.layers",
}


@pytest.mark.parametrize("names", OLD_NAMES.values(), ids=OLD_NAMES)
def test_names_of_an_older_transformers_are_served_as_peft_loads_them(
    gemma3: World, tmp_path: Path, names: str
):
    old = renamed(gemma3.adapter, tmp_path / "old", r"model\.model\.language_model\.layers", names)
    assert all(name.startswith(f"base_model.{names}") for name in load_file(old / WEIGHTS))
    wanted = pefts(gemma3, gemma3.adapter)
    if names == OLD_NAMES["before 4.52"]:  # PEFT passes over the others, without a word
        assert same(pefts(gemma3, old), wanted)
    registry = AdapterRegistry(tmp_path / "registry")
    registry.register("new", gemma3.adapter, base=gemma3.base)
    registry.register("old", old, base=gemma3.base)
    assert registry.verify() == []
    assert same(served(gemma3, registry, "old"), wanted)
    # A blend of both names is the sum of one adapter, whether it is stored or not.
    blend_adapters(registry, "blend", {"old": 0.25, "new": 0.75})
    assert registry.verify() == []
    assert same(served(gemma3, registry, "blend"), wanted)
    assert same(served(gemma3, registry, "old:0.25+new:0.75"), wanted)


@pytest.mark.parametrize("names", ["new", "old"])
def test_a_merge_finds_the_weights_in_the_files(gemma3: World, tmp_path: Path, names: str):
    adapter = gemma3.adapter
    if names == "old":
        adapter = renamed(
            adapter,
            tmp_path / "old",
            r"model\.model\.language_model\.layers",
            "model.language_model.model.layers",
        )
    report = merge_adapter(gemma3.base, adapter, tmp_path / "merged")
    assert report.merged == 4
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    base = AutoModelForCausalLM.from_pretrained(gemma3.base, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, gemma3.adapter).merge_and_unload()
    for name, weight in merged.state_dict().items():
        assert torch.equal(model.state_dict()[name], weight), name


def finetune_config(one: World, folder: Path, **changes: object) -> FinetuneConfig:
    turns = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    (folder / "data.jsonl").write_text(4 * (json.dumps({"messages": turns}) + "\n"))
    settings = {
        "name": "tuned",
        "base": str(one.base),
        "quantization": None,
        "data": {"train": str(folder / "data.jsonl"), "validation_share": 0},
        "train": {"max_steps": 2, "batch_size": 2, "learning_rate": 0.01, "warmup": 0},
    }
    return FinetuneConfig.model_validate({**settings, **changes})


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj"]])
def test_a_fine_tune_of_such_a_base_is_registered(gemma3: World, tmp_path: Path, targets):
    """Its vision tower has layers of the same names, which no text reaches."""
    registry = AdapterRegistry(tmp_path / "registry")
    card = finetune(finetune_config(gemma3, tmp_path, lora={"r": 2, "target_modules": targets}), registry)
    assert registry.verify() == []
    names = load_file(registry.folder(card) / WEIGHTS)
    assert all(".language_model.layers." in name for name in names)
    assert same(served(gemma3, registry, "tuned"), pefts(gemma3, registry.folder(card)))


def test_a_fine_tune_starts_from_an_adapter_under_old_names(gemma3: World, tmp_path: Path):
    """Without a step that counts, the result is the adapter that it started from."""
    old = renamed(
        gemma3.adapter,
        tmp_path / "old",
        r"model\.model\.language_model\.layers",
        OLD_NAMES["before 4.52"],
    )
    config = finetune_config(
        gemma3,
        tmp_path,
        initial_adapter=str(old),
        lora={"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        train={"max_steps": 1, "batch_size": 2, "learning_rate": 1e-7, "warmup": 0},
    )
    registry = AdapterRegistry(tmp_path / "registry")
    finetune(config, registry)
    assert same(served(gemma3, registry, "tuned"), pefts(gemma3, gemma3.adapter))


def inner_model(adapter: Path, out: Path) -> Path:
    return renamed(adapter, out, r"^base_model\.model\.model\.", "base_model.model.")


def other_names(adapter: Path, out: Path) -> Path:
    return renamed(adapter, out, r"q_proj", "query")


REFUSED: list[tuple[str, Callable[[Path, Path], Path], str]] = [
    ("llama", inner_model, "inner model"),
    ("llama", other_names, "another architecture"),
]


@pytest.mark.parametrize(("kind", "change", "hint"), REFUSED, ids=lambda one: getattr(one, "__name__", one))
def test_what_cannot_be_served_is_refused_everywhere(
    request, tmp_path: Path, kind: str, change: Callable[[Path, Path], Path], hint: str
):
    one: World = request.getfixturevalue(kind)
    adapter = change(one.adapter, tmp_path / "changed")
    registry = AdapterRegistry(tmp_path / "registry")
    with pytest.raises(AdapterIncompatibleError, match="linear layers of the base") as caught:
        registry.register("a", adapter, base=one.base)
    assert hint in str(caught.value.hint)
    with pytest.raises(AdapterIncompatibleError, match="linear layers of the base"):
        merge_adapter(one.base, adapter, tmp_path / "merged")
    # Without a base nothing can be compared; `verify` finds it once the base is known.
    registry.register("a", adapter)
    with pytest.raises(AdapterHubError, match="linear layers of the base"):
        served(one, registry, "a")
    card = registry.get("a")
    assert card.base.name == str(one.base)
    (problem,) = registry.verify()
    assert (problem.ref, "linear layers of the base" in problem.message) == ("a@1", True)


def test_verify_passes_over_a_base_that_is_not_here(llama: World, tmp_path: Path):
    base = shutil.copytree(llama.base, tmp_path / "base")
    registry = AdapterRegistry(tmp_path / "registry")
    registry.register("a", llama.adapter, base=base)
    shutil.rmtree(base)
    assert registry.verify() == []
    make_base(base, seed=5)  # another base under that name
    assert registry.verify() == []


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_copies_of_the_bases_weights_change_nothing(llama: World, tmp_path: Path, bias: str):
    adapter = make_adapter(tmp_path / "a", llama.base, target_modules=["q_proj", "lm_head"], bias=bias)
    assert any("base_layer" in name for name in load_file(adapter / WEIGHTS))
    registry = AdapterRegistry(tmp_path / "registry")
    registry.register("a", adapter, base=llama.base)
    assert registry.verify() == []
    wanted = pefts(llama, adapter)
    assert same(served(llama, registry, "a"), wanted)
    merge_adapter(llama.base, registry.folder(registry.resolve("a")), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    assert same(greedy(merged, llama.hub.engine.tokenizer.encode(PROMPT)), wanted)


@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_a_trained_weight_of_the_base_is_refused_everywhere(llama: World, tmp_path: Path):
    adapter = make_adapter(tmp_path / "a", llama.base, target_modules=["q_proj", "lm_head"])
    tensors = load_file(adapter / WEIGHTS)
    tensors["base_model.model.lm_head.base_layer.weight"][5, 5] += 1
    save_file(tensors, adapter / WEIGHTS)
    registry = AdapterRegistry(tmp_path / "registry")
    with pytest.raises(AdapterIncompatibleError, match="not the base's own weight"):
        registry.register("a", adapter, base=llama.base)
    with pytest.raises(AdapterIncompatibleError, match="not the base's own weight"):
        merge_adapter(llama.base, adapter, tmp_path / "merged")
    registry.register("a", adapter)
    with pytest.raises(AdapterHubError, match="not the base's own weight"):
        served(llama, registry, "a")
    (problem,) = registry.verify()
    assert "not the base's own weight" in problem.message
    registry.register("b", llama.adapter, base=llama.base)
    for parts in ({"a": 1.0}, {"b": 1.0, "a": 0.5}):
        with pytest.raises(AdapterIncompatibleError, match="not the base's own weight"):
            blend_adapters(registry, "blend", parts)
    initial = shutil.copytree(llama.adapter, tmp_path / "initial")
    trained = {"base_model.model.model.norm.weight": torch.full((64,), 2.0)}
    save_file({**load_file(llama.adapter / WEIGHTS), **trained}, initial / WEIGHTS)
    lora = {"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    config = finetune_config(llama, tmp_path, initial_adapter=str(initial), lora=lora)
    with pytest.raises(AdapterIncompatibleError, match="not the base's own weight"):
        finetune(config, registry)
    assert [card.name for card in registry.list()] == ["a", "b"]


def test_two_names_of_one_layer_are_refused(gemma3: World, tmp_path: Path):
    adapter = shutil.copytree(gemma3.adapter, tmp_path / "both")
    tensors = load_file(adapter / WEIGHTS)
    old = {
        name.replace("model.model.language_model.", "model.language_model.model."): one + 0
        for name, one in tensors.items()
    }
    save_file({**tensors, **old}, adapter / WEIGHTS)
    with pytest.raises(AdapterHubError, match="which are one layer of the base"):
        AdapterRegistry(tmp_path / "registry").register("a", adapter, base=gemma3.base)
