"""Adapters that change embeddings, whole modules and rows of tokens, against PEFT: logits and mixed batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM

from adapterhub.base.loading import Base, load_base
from adapterhub.config import EngineLimits
from adapterhub.engine.batching import BatchingEngine
from adapterhub.engine.runner import Runner
from adapterhub.engine.runners.packed import PackedRunner
from adapterhub.engine.runners.row_by_row import RowRunner
from adapterhub.errors import AdapterIncompatibleError, EngineError
from adapterhub.lora.loading import load_folder_deltas
from adapterhub.lora.mapping import LoraMapping
from adapterhub.lora.model_manager import LoraModelManager
from adapterhub.lora.module_layers import _tokens_first
from tests.engine.hybrids import hybrid_config
from tests.engine.maker import prompt_of, request, stored_request
from tests.tiny import ATTENTION, make_adapter, make_base, make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

TOKENS = [7, 300, 12, 60]
BASES = {
    "llama": {},
    "llama-tied": {"tie_word_embeddings": True},
    "qwen3": {},
    "gemma3": {},  # its embeddings scale, its norms of heads get the heads before the tokens, the head is tied
    "gpt2": {},  # tied, its layers are Conv1D
    "lfm2": {},  # convolutions, whose states lie beside keys and values; tied
}
TARGETS = {**ATTENTION, "lfm2": ["q_proj", "in_proj"]}
# An embedding, a norm and a layer of the MLP.
NAMES = {"gpt2": ("wte", "ln_f", "c_fc"), "lfm2": ("embed_tokens", "embedding_norm", "w1")}


def settings_of(kind: str) -> dict[str, dict[str, Any]]:
    """Adapters of each kind, and several kinds in one."""
    attention, (embedding, norm, layer) = TARGETS[kind], NAMES.get(kind, ("embed_tokens", "norm", "up_proj"))
    adapters: dict[str, dict[str, Any]] = {
        "plain": {},
        "embedding": {"target_modules": [*attention, embedding]},
        "embedding-alone": {"target_modules": [embedding], "use_rslora": True},
        "embedding-and-head": {"target_modules": [*attention, embedding, "lm_head"]},
        "embedding-tied": {"target_modules": [*attention, embedding], "ensure_weight_tying": True},
        "saved-head": {"modules_to_save": ["lm_head"]},
        "saved-embedding": {"modules_to_save": [embedding]},
        "saved-both": {"modules_to_save": [embedding, "lm_head"], "use_dora": True},
        "saved-tied": {"modules_to_save": [embedding], "ensure_weight_tying": True},
        "saved-norms": {"modules_to_save": [norm]},
        "saved-layers": {"modules_to_save": [layer]},
        "tokens": {"trainable_token_indices": TOKENS},
        "tokens-of-head": {"trainable_token_indices": {embedding: TOKENS, "lm_head": [5, 3]}},
        "tokens-and-norms": {"trainable_token_indices": {embedding: TOKENS}, "modules_to_save": [norm]},
    }
    return {name: {"target_modules": attention, **settings} for name, settings in adapters.items()}


def make_hybrid(folder: Path, kind: str) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(hybrid_config(kind))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


class World:
    """A base, its adapters, and PEFT with each of them alone."""

    def __init__(self, root: Path, name: str) -> None:
        kind = name.partition("-")[0]
        self.folder = root / "base"
        make_hybrid(self.folder, kind) if kind == "lfm2" else make_base(self.folder, kind, **BASES[name])
        self.adapters = {
            adapter: make_adapter(root / adapter, self.folder, seed=seed, **settings)
            for seed, (adapter, settings) in enumerate(settings_of(kind).items())
        }

    @cache  # noqa: B019 - as long as the module's fixture
    def peft(self, name: str | None) -> Any:
        model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)
        model.generation_config.eos_token_id = None
        return (PeftModel.from_pretrained(model, self.adapters[name]) if name else model).eval()

    @torch.inference_mode()
    def logits(self, name: str | None, ids: list[int]) -> torch.Tensor:
        return self.peft(name)(input_ids=torch.tensor([ids])).logits[0]

    @torch.inference_mode()
    def generate(self, name: str | None, ids: list[int], count: int) -> list[int]:
        ids_ = torch.tensor([ids])
        out = self.peft(name).generate(input_ids=ids_, max_new_tokens=count, do_sample=False, pad_token_id=0)
        return out[0, len(ids) :].tolist()


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> Callable[[str], World]:
    return cache(lambda name: World(tmp_path_factory.mktemp(name), name))


SOME_SLOW = [
    pytest.param(name, marks=pytest.mark.slow if name in ("llama", "qwen3") else []) for name in BASES
]


@pytest.fixture(scope="module", params=SOME_SLOW)
def world(request, worlds) -> World:
    return worlds(request.param)


def loaded(base: Base, folder: Path) -> dict[str, Any]:
    return load_folder_deltas(folder, base.model, base.linear_layers, dtype=torch.float32)


def test_logits_equal_pefts(world: World):
    base, ids = load_base(world.folder, quantization=None), [*TOKENS, *prompt_of(3, 20)]
    deltas = {name: loaded(base, folder) for name, folder in world.adapters.items()}
    layers = LoraModelManager(base.model, slots=len(deltas), dtype=torch.float32)
    for slot, name in enumerate(deltas):
        layers.load(slot, deltas[name])
    wanted = world.logits(None, ids)
    for slot, name in enumerate([*deltas, None]):
        mapping = LoraMapping([(slot, len(ids))] if name else [], num_base_tokens=0 if name else len(ids))
        with torch.inference_mode(), layers.using(mapping):
            logits = base.model(input_ids=torch.tensor([ids])).logits[0]
        peft = world.logits(name, ids)
        assert (logits - peft).abs().max() < 2e-5 * peft.abs().max(), name
        assert name is None or (peft - wanted).abs().max() > 0.01, name


def check_mixed_batch(world: World, runner: Callable[..., Runner]) -> None:
    names = [*world.adapters, None, "plain"]
    prompts = [[*TOKENS[: index % 5], *prompt_of(index, 1 + 3 * index % 29)] for index in range(len(names))]
    base = load_base(world.folder, quantization=None)
    engine = BatchingEngine(base, EngineLimits(max_loras=16), runner=runner(base, max_loras=16))
    try:
        batch = [
            request(prompt, stored_request(name, world.adapters[name]) if name else None, max_tokens=8)
            for name, prompt in zip(names, prompts, strict=True)
        ]
        answers = [list(one[0].token_ids) for one in engine.generate(batch)]
    finally:
        engine.close()
    for name, prompt, answer in zip(names, prompts, answers, strict=True):
        assert answer == world.generate(name, prompt, 8), name


def test_a_mixed_batch_gives_pefts_tokens(world: World):
    check_mixed_batch(world, PackedRunner)


def test_row_by_row_gives_pefts_tokens_too(worlds: Callable[[str], World]):
    check_mixed_batch(worlds("gpt2"), RowRunner)


def test_on_a_4_bit_base_too(worlds):
    world, ids = worlds("llama-tied"), torch.tensor([[*TOKENS, *prompt_of(3, 20)]])
    load = partial(load_base, world.folder, compute_dtype="float32", training=True)  # nothing packed
    for name in ("embedding", "saved-head", "saved-norms", "tokens"):
        reference = PeftModel.from_pretrained(load().model, world.adapters[name]).eval()
        base = load()
        layers = LoraModelManager(base.model, slots=1, dtype=torch.float32)
        layers.load(0, loaded(base, world.adapters[name]))
        with torch.inference_mode(), layers.using(LoraMapping([(0, ids.shape[1])])):
            logits = base.model(input_ids=ids).logits
        with torch.inference_mode():
            assert (logits - reference(input_ids=ids).logits).abs().max() < 1e-4, name


def test_a_quantised_layer_is_replaced_by_an_unquantised_one(worlds):
    world, name = worlds("llama-tied"), "model.layers.1.mlp.up_proj"
    base = load_base(world.folder, compute_dtype="float32", training=True)
    deltas = {name: loaded(base, world.adapters["saved-layers"])[name]}
    layers = LoraModelManager(base.model, slots=2, dtype=torch.float32)
    layers.load(1, deltas)
    ids = torch.tensor([prompt_of(3, 9)])
    with torch.inference_mode():
        with layers.using(LoraMapping([(1, 9)])):
            found = base.model(input_ids=ids).logits
        plain = nn.Linear(64, 128, bias=False)
        plain.weight = nn.Parameter(deltas[name].parameters["weight"])
        base.model.set_submodule(name, plain)
        assert torch.equal(base.model(input_ids=ids).logits, found)


def test_a_slot_holds_memory_for_its_own_modules_only(worlds):
    world = worlds("llama-tied")
    base = load_base(world.folder, quantization=None)
    layers = LoraModelManager(base.model, slots=4, dtype=torch.float32)
    layers.load(0, loaded(base, world.adapters["plain"]))
    plain, head = layers.bytes, 320 * 64 * 4
    layers.load(1, loaded(base, world.adapters["saved-head"]))
    assert layers.bytes == plain + head
    layers.load(2, loaded(base, world.adapters["tokens"]))
    layers.load(2, loaded(base, world.adapters["saved-both"]))  # other modules of the same slot
    dora = layers.bytes - plain - 3 * head
    layers.clear(1)
    layers.load(2, loaded(base, world.adapters["plain"]))
    assert layers.bytes == plain + dora  # the stacked scales of DoRA stay
    layers.clear(2)
    layers.clear(2)
    assert layers.bytes == plain + dora


def test_heads_before_tokens_are_told_from_tokens_before_heads():
    """A norm of 4 heads in a step of 4 tokens: the tokens are those that a projection laid out far apart."""
    by_token = torch.arange(4 * 4 * 8.0).view(1, 4, 4, 8)  # tokens, heads
    for x in (by_token, by_token.transpose(1, 2)):
        for token, of_token in enumerate(_tokens_first(x, 4)(x)):
            assert sorted(of_token.flatten().tolist()) == by_token[0, token].flatten().tolist()
    with pytest.raises(EngineError, match="the 7 tokens of the step"):
        _tokens_first(by_token, 7)


def test_what_mixes_tokens_cannot_be_replaced(worlds, tmp_path: Path):
    folder = worlds("lfm2").folder
    adapter = make_adapter(tmp_path / "a", folder, target_modules=["q_proj"], modules_to_save=["conv.conv"])
    with pytest.raises(AdapterIncompatibleError, match="no linear layer, embedding or plain norm"):
        loaded(load_base(folder, quantization=None), adapter)
