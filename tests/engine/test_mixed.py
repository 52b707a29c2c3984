"""Batches of different adapters against PEFT on each sequence alone: logits, greedy tokens, sampling, prefixes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from adapterhub.base.loading import Base, load_base
from adapterhub.config import EngineLimits
from adapterhub.engine.batching import BatchingEngine
from adapterhub.engine.interface import Completion, Request
from adapterhub.engine.kv.cache import KVCache, KVSlot
from adapterhub.engine.runner import ScheduledSequence
from adapterhub.engine.runners.packed import PackedRunner
from adapterhub.lora.loading import load_folder_deltas
from adapterhub.lora.mapping import LoraMapping
from adapterhub.lora.request import StoredLoraRequest
from tests.engine.maker import (
    NOTHING,
    Reference,
    adapter_settings,
    answer,
    counts,
    make_adapters,
    prompt_of,
    request,
    sources_of,
    tokens,
)
from tests.tiny import make_base

WINDOW = 8
BASES = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "mistral-window": {"sliding_window": WINDOW},
    "qwen2": {},
    "gpt2": {},
}
# Mistral without a window is the same code as Llama.
SOME_SLOW = [pytest.param(name, marks=pytest.mark.slow) if name == "mistral" else name for name in BASES]
LENGTHS = (3, 1, 9, 20, 5, 17)  # the longer ones reach beyond the window
DECODED = 5


@dataclass
class World:
    """A base, sixteen adapters for it, and PEFT with them."""

    base: Path
    adapters: dict[str, Path]
    peft: Reference

    @property
    def names(self) -> list[str | None]:
        """The adapters of a batch: each of them, and twice the base without one."""
        return [None, *self.adapters, None]


@dataclass
class Running:
    """One sequence of a batch."""

    name: str | None
    prompt: list[int]
    lora_slot: int | None
    kv_slot: KVSlot
    joins: int
    tokens: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)

    def scheduled(self, chunk: int) -> ScheduledSequence:
        done = self.kv_slot.length
        new = self.prompt[done : done + chunk] or self.tokens[-1:]
        return ScheduledSequence(self.kv_slot, new, self.lora_slot, done + len(new) >= len(self.prompt))

    def accept(self, logits: torch.Tensor) -> None:
        self.logits.append(logits.clone())
        self.tokens.append(int(logits.argmax()))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> Callable[[str], World]:
    """Makes each world once."""

    @cache
    def make(name: str) -> World:
        kind, root = name.partition("-")[0], tmp_path_factory.mktemp(name)
        base = make_base(root / "base", kind, **BASES[name])
        adapters = make_adapters(root, base, adapter_settings(kind))
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        return World(base, adapters, Reference(model, adapters))

    return make


@pytest.fixture(scope="module", params=SOME_SLOW)
def world(request, worlds) -> World:
    return worlds(request.param)


@pytest.fixture(scope="module")
def llama(worlds) -> World:
    return worlds("llama")


def run(base: Base, world: World, *, joining: bool, names: list[str | None] | None = None) -> list[Running]:
    """Runs a batch on the model runner: in step, or joining and leaving while others prefill in chunks."""
    names = names or world.names
    slots = {
        name: (7 * index) % 16 for index, name in enumerate(world.adapters)
    }  # not in the order of the sequences
    runner = PackedRunner(base, max_loras=16)
    for name in filter(None, names):
        deltas = load_folder_deltas(
            world.adapters[name], base.model, base.linear_layers, dtype=base.compute_dtype
        )
        runner.load_adapter(slots[name], deltas)
    cache = KVCache(runner.kv_shape, 4096)
    sequences = []
    for index, name in enumerate(names):
        prompt = prompt_of(index, LENGTHS[index % len(LENGTHS)])
        kv_slot = cache.allocate(len(prompt) + DECODED + 60 * (index % 2))  # in two pools
        assert kv_slot
        joins = (5 * index) % 4 if joining else 0
        sequences.append(Running(name, prompt, slots[name] if name else None, kv_slot, joins))
    step = 0
    while running := [one for one in sequences if len(one.logits) < DECODED]:
        active = [one for one in running if one.joins <= step]
        step_input = [one.scheduled(chunk=6 if joining else 100) for one in active]
        logits = runner.step(step_input)
        with_logits = [one for one, given in zip(active, step_input, strict=True) if given.needs_logits]
        for one, row in zip(with_logits, logits, strict=True):
            one.accept(row)
            if len(one.logits) == DECODED:
                cache.free(one.kv_slot)  # another slot may move into the gap
        step += 1
    assert cache.num_slots == 0
    return sequences


def differences(sequences: list[Running], reference: Reference) -> list[float]:
    """For each sequence the largest difference of a logit, over the prompt's last token and all that follow."""
    out = []
    for one in sequences:
        wanted = reference.logits(one.name, [*one.prompt, *one.tokens[:-1]])[len(one.prompt) - 1 :]
        out.append(float((torch.stack(one.logits) - wanted).abs().max()))
    return out


@pytest.mark.parametrize(
    ("batched", "joining"),
    [(True, True), (False, True), (None, False)],
    ids=["batched, joining", "each, joining", "chosen, in step"],
)
def test_logits_of_every_sequence_are_pefts(world: World, monkeypatch, batched: bool | None, joining: bool):
    monkeypatch.setattr("adapterhub.engine.runners.packed.LoraMapping", partial(LoraMapping, batched=batched))
    sequences = run(load_base(world.base, quantization=None, device="cpu"), world, joining=joining)
    assert max(differences(sequences, world.peft)) <= 1e-4


def test_the_adapters_change_the_logits(world: World):
    """Or the other tests would mean little: no adapter's logits are near the base's or another adapter's."""
    logits = [world.peft.logits(name, prompt_of(0, 9))[-1] for name in world.names[:-1]]
    for index, one in enumerate(logits):
        for other in logits[:index]:
            assert (one - other).abs().max() > 0.1


def test_greedy_tokens_are_those_of_generate(world: World):
    engine = BatchingEngine(
        load_base(world.base, quantization=None, device="cpu"), EngineLimits(kv_cache_mib=32)
    )
    sources, prompts = sources_of(world.adapters), [prompt_of(20 + n, 4 + n) for n in range(18)]
    batch = [request(p, sources[n] if n else None) for n, p in zip(world.names, prompts, strict=True)]
    got = [list(one.token_ids) for (one,) in engine.generate(batch)]
    engine.close()
    assert got == [world.peft.generate(n, p, 12) for n, p in zip(world.names, prompts, strict=True)]


def test_on_a_4_bit_base_the_same_bound_holds_for_the_float_kernel(llama: World):
    """`training=True` keeps bitsandbytes from its packed CPU kernel, which multiplies in bfloat16 and would differ
    from itself by more than this at another number of rows; what is left is float32 over the dequantised weights."""
    load = partial(load_base, llama.base, compute_dtype="float32", training=True, device="cpu")
    reference = Reference(load().model, llama.adapters)
    sequences = run(load(), llama, joining=True)
    assert max(differences(sequences, reference)) <= 1e-4
    assert min(differences(sequences, llama.peft)) > 1e-2, "4 bits are not the base's own weights"


def test_in_bfloat16_it_is_as_near_to_float32_as_peft(llama: World, tmp_path: Path):
    """Both round every layer's output to 8 bits, PEFT keeps the factors in float32, and the engine does not: logits of
    size 2 are off by 0.006 on average under PEFT and by 0.008 here, 0.15 at most."""
    base = make_base(tmp_path, dtype=torch.bfloat16)
    exact, rounded = (
        Reference(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), llama.adapters)
        for dtype in (torch.float32, torch.bfloat16)
    )
    loaded = load_base(base, quantization=None, device="cpu", compute_dtype="bfloat16")
    ours, pefts = [], []
    for one in run(loaded, llama, joining=True):
        ids, first = [*one.prompt, *one.tokens[:-1]], len(one.prompt) - 1
        wanted = exact.logits(one.name, ids)[first:]
        ours.append((torch.stack(one.logits).float() - wanted).abs())
        pefts.append((rounded.logits(one.name, ids)[first:].float() - wanted).abs())
    assert max(float(error.max()) for error in ours) <= 0.3
    for own, peft in zip(ours, pefts, strict=True):
        assert own.pow(2).mean().sqrt() <= 3 * peft.pow(2).mean().sqrt()
    assert torch.cat(ours).pow(2).mean().sqrt() <= 2 * torch.cat(pefts).pow(2).mean().sqrt()


# Through the engine: the parameters of a request do not affect its neighbours.


@pytest.fixture
def engine(llama: World) -> Iterator[BatchingEngine]:
    limits = EngineLimits(max_loras=6, max_cpu_loras=16, kv_cache_mib=64)
    engine = BatchingEngine(load_base(llama.base, quantization=None, device="cpu"), limits)
    yield engine
    assert counts(engine) == NOTHING
    engine.close()


@pytest.fixture(scope="module")
def sources(llama: World) -> list[StoredLoraRequest | None]:
    return [None, *sources_of(llama.adapters).values()]


def about_equal(got: Completion, wanted: Completion) -> None:
    """Log-probabilities differ by rounding; everything else is the same."""
    assert (got.text, got.token_ids, got.finish_reason) == (
        wanted.text,
        wanted.token_ids,
        wanted.finish_reason,
    )
    assert (got.logprobs is None) == (wanted.logprobs is None)
    for one, other in zip(got.logprobs or (), wanted.logprobs or (), strict=True):
        assert one.token_id == other.token_id
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert dict(one.top) == pytest.approx(dict(other.top), abs=1e-4)


def test_every_request_keeps_its_own_settings(
    engine: BatchingEngine, sources: list[StoredLoraRequest | None]
):
    plain = [answer(engine, request(prompt_of(index, 9), source)) for index, source in enumerate(sources)]
    settings: list[dict[str, object]] = [
        {"n": 3, "temperature": 1.5, "seed": 11},
        {"logprobs": 4},
        {"stop": plain[2].text[2:4]},
        {"stop_token_ids": [plain[3].token_ids[5]]},
        {"temperature": 0.7, "seed": 5, "top_p": 0.8},
        {"temperature": 2.0, "seed": 6, "top_k": 5, "max_tokens": 20},
        {"temperature": 1.0, "seed": 7, "min_p": 0.1, "logprobs": 0},
        {"repetition_penalty": 1.8},
        {"max_tokens": 1},
        {"n": 2, "temperature": 1.0, "seed": 1, "repetition_penalty": 1.3, "logprobs": 1},
    ]
    batch = [
        request(prompt_of(index, 9), source, **settings[index % len(settings)])
        for index, source in enumerate(sources)
    ]
    singles = [engine.generate([one])[0] for one in batch]
    batched = engine.generate(batch)
    for got, wanted in zip(batched, singles, strict=True):
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            about_equal(one, other)
    # The settings did something.
    assert [len(answers) for answers in batched[:2]] == [3, 1]
    assert len({one.token_ids for one in batched[0]}) == 3
    assert [batched[index][0].finish_reason for index in (2, 3)] == ["stop", "stop"]
    assert (
        batched[3][0].token_ids == plain[3].token_ids[: plain[3].token_ids.index(plain[3].token_ids[5]) + 1]
    )
    assert batched[7][0].token_ids != plain[7].token_ids
    assert len(batched[5][0].token_ids) == 20


def test_the_same_seed_under_other_adapters_gives_other_answers(engine, sources):
    batch = [request(prompt_of(0, 9), source, temperature=1.0, seed=3) for source in sources]
    assert len({one[0].token_ids for one in engine.generate(batch)}) == len(sources)


def hits(engine: BatchingEngine, one: Request) -> int:
    """How many tokens of a prompt were in the prefix cache."""
    before = engine.stats().prefix_cache_hit_tokens
    tokens(engine, one)
    return engine.stats().prefix_cache_hit_tokens - before


def test_a_prefix_is_shared_under_one_adapter_only(engine: BatchingEngine, sources, llama: World):
    prompt = prompt_of(1, 100)
    for source in sources[:3]:
        one = request(prompt, source)
        first = tokens(engine, one)
        assert first == llama.peft.generate(source.name if source else None, prompt, 12)
        assert hits(engine, one) == 96
        assert tokens(engine, one) == first
    assert hits(engine, request(prompt, sources[3])) == 0
    assert hits(engine, request([*prompt[:70], *prompt_of(2, 30)], sources[1])) == 64


def test_later_completions_of_a_prompt_share_the_prefill_of_the_first(engine: BatchingEngine, sources):
    many = engine.generate([request(prompt_of(3, 100), sources[1], n=4, temperature=1.0, seed=1)])[0]
    assert engine.stats().prefix_cache_hit_tokens == 3 * 96
    assert many[0] == answer(engine, request(prompt_of(3, 100), sources[1], temperature=1.0, seed=1))
