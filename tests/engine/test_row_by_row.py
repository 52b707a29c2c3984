"""Bases that cannot be packed: each sequence is a forward pass of its own, on the cache that transformers makes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from adapterhub.base.loading import Base, load_base
from adapterhub.config import EngineLimits
from adapterhub.engine.batching import BatchingEngine
from adapterhub.engine.interface import Request
from adapterhub.engine.output_format import OutputFormat
from adapterhub.engine.runner import ScheduledSequence
from adapterhub.engine.runners.choosing import make_runner
from adapterhub.engine.runners.row_by_row import RowRunner
from adapterhub.engine.runners.row_forward import Continuation, RowForward, state_bytes
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.errors import EngineError, GenerationError, RequestTooLongError
from adapterhub.evaluation.measuring import Measurer
from adapterhub.lora.loading import load_folder_deltas
from adapterhub.training.tokenizing import IGNORE_INDEX, TokenizedExample
from tests.engine.maker import (
    NOTHING,
    Reference,
    counts,
    make_adapters,
    outcomes,
    prompt_of,
    request,
    sources_of,
)
from tests.tiny import CONTEXT, SIZES, VOCABULARY, make_tokenizer

GPT = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}
MAMBA = {"mamba_d_state": 8, "mamba_dt_rank": 8, "num_experts": 2}


@dataclass(frozen=True)
class Family:
    """A tiny model, the layers that its adapters target, and how it continues a sequence."""

    config: dict[str, Any]
    targets: list[str]
    continuation: Continuation = Continuation.CHUNKS


# One for each way to continue a sequence, and for each argument that takes a cache; `tests.families` has the others.
FAMILIES = {
    "bloom": Family(
        {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4},
        ["query_key_value", "dense", "dense_h_to_4h"],
    ),
    "mamba2": Family(
        {**SIZES, "state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 8}, ["in_proj"]
    ),
    "jamba": Family(
        {**SIZES, **MAMBA, "attn_layer_period": 2, "attn_layer_offset": 1}, ["q_proj", "in_proj"], Continuation.TOKENS
    ),
    "openai-gpt": Family({**GPT}, ["c_attn", "c_fc"], Continuation.NOTHING),
}  # fmt: skip
LOGITS = 4 * VOCABULARY  # bytes of a token's
PROMPTS = [prompt_of(seed, length) for seed, length in enumerate([30, 1, 11])]


@dataclass(frozen=True)
class World:
    """A base that is served row by row, two adapters for it, and PEFT with them."""

    folder: Path
    adapters: dict[str, Path]
    peft: Reference
    continuation: Continuation

    def load(self) -> Base:
        return load_base(self.folder, quantization=None, device="cpu")

    def engine(self, **limits: Any) -> BatchingEngine:
        base, maximum = self.load(), EngineLimits(**{"kv_cache_mib": 16, **limits})
        return BatchingEngine(base, maximum, runner=RowRunner(base, max_loras=maximum.max_loras))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory) -> Callable[[str], World]:
    """Makes each world once."""

    @cache
    def make(name: str) -> World:
        family, root = FAMILIES[name], tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **family.config))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(root / "base")
        make_tokenizer().save_pretrained(root / "base")
        one = {"r": 4, "target_modules": family.targets, "fan_in_fan_out": name == "openai-gpt"}
        adapters = make_adapters(root, root / "base", {"json": one, "sql": one})
        reference = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32)
        return World(root / "base", adapters, Reference(reference, adapters), family.continuation)

    return make


@pytest.fixture(params=FAMILIES)
def world(request, worlds) -> World:
    return worlds(request.param)


@pytest.fixture
def bloom(worlds) -> World:
    return worlds("bloom")


def test_the_tokens_of_a_mixed_batch_are_those_of_generate_and_peft(world: World):
    engine = world.engine(max_batch_size=9, max_num_batched_tokens=12)  # prompts are computed in chunks
    sources = sources_of(world.adapters)
    batch = [(name, prompt) for prompt in PROMPTS for name in (None, "json", "sql")]
    requests = [request(prompt, sources[name] if name else None) for name, prompt in batch]
    got = [list(one.token_ids) for (one,) in engine.generate(requests)]
    assert got == [world.peft.generate(name, prompt, 12) for name, prompt in batch]
    assert engine.stats().runner == "row by row"
    assert counts(engine) == NOTHING
    engine.close()


def test_the_log_probabilities_of_a_prompt_are_those_of_the_model_and_peft(world: World):
    engine = world.engine(max_batch_size=9, max_num_batched_tokens=12)
    sources = sources_of(world.adapters)
    batch = [(name, prompt) for prompt in PROMPTS for name in (None, "json", "sql")]
    requests = [request(prompt, sources[name] if name else None, prompt_logprobs=1) for name, prompt in batch]
    for (name, prompt), (completion,) in zip(batch, engine.generate(requests), strict=True):
        wanted = world.peft.logits(name, prompt).log_softmax(-1)[:-1]
        expected = wanted.gather(1, torch.tensor(prompt[1:], dtype=torch.long)[:, None])[:, 0]
        found = [one.logprob for one in completion.prompt_logprobs[1:]]
        assert found == pytest.approx(expected.tolist(), abs=2e-3)
        assert list(completion.token_ids) == world.peft.generate(name, prompt, 12)
    engine.close()


def test_the_adapters_change_the_tokens(world: World):
    """Or the test above would mean little."""
    answers = {tuple(world.peft.generate(name, PROMPTS[0], 12)) for name in (None, "json", "sql")}
    assert len(answers) == 3


def test_how_a_model_continues_a_sequence_is_found_out(world: World):
    assert RowRunner(world.load(), max_loras=1).continuation is world.continuation


@pytest.mark.parametrize(
    ("quantization", "compute_dtype", "continuation"),
    [
        ("nf4", "auto", Continuation.CHUNKS),
        (None, "bfloat16", Continuation.CHUNKS),
        (
            "int8",
            "auto",
            Continuation.TOKENS,
        ),  # a token is rounded by the others of its pass, so nothing is said
    ],
)
def test_rounding_is_told_from_a_state_that_is_lost(
    bloom: World, quantization: Any, compute_dtype: Any, continuation: Continuation
):
    base = load_base(bloom.folder, quantization=quantization, compute_dtype=compute_dtype, device="cpu")
    assert RowRunner(base, max_loras=1).continuation is continuation


def test_a_base_that_cannot_be_packed_gets_this_runner(bloom: World, caplog):
    base = bloom.load()
    own_attention = base.model.config._attn_implementation
    with caplog.at_level("WARNING", logger="adapterhub"):
        runner = make_runner(base, max_loras=1)
    assert isinstance(runner, RowRunner)
    assert base.model.config._attn_implementation == own_attention
    assert "row by row" in caplog.text
    with pytest.raises(EngineError, match="belongs to another engine"):
        make_runner(base, max_loras=1)


def test_an_encoder_is_refused(bloom: World):
    config = AutoConfig.for_model("bert", **{**SIZES, "num_hidden_layers": 2})
    encoder = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(EngineError, match="it is no decoder"):
        RowRunner(replace(bloom.load(), model=encoder), max_loras=1)


# A step that fails


def test_after_a_failed_step_every_sequence_goes_on(world: World):
    """A pass fails when the caches have its tokens already: the step is tried again, and nothing counts twice."""
    base = world.load()
    failing = iter([False] * 7 + [True] + [False] * 4 + [True])

    def fail(*_: object) -> None:
        if next(failing, False):
            raise RuntimeError("a passing fault")

    base.model.get_output_embeddings().register_forward_pre_hook(fail)
    engine = BatchingEngine(base, EngineLimits(kv_cache_mib=16), runner=RowRunner(base, max_loras=2))
    got = [list(one.token_ids) for (one,) in engine.generate([request(prompt) for prompt in PROMPTS])]
    assert got == [world.peft.generate(None, prompt, 12) for prompt in PROMPTS]
    assert next(failing, None) is None, "it failed twice"
    engine.close()


@pytest.mark.parametrize("name", ["bloom", "jamba"])
def test_what_a_failed_step_has_computed_is_not_computed_again(worlds, name: str, monkeypatch):
    world, prompt = worlds(name), PROMPTS[2]
    runner = RowRunner(world.load(), max_loras=1)
    slots, _ = runner.make_caches(1 << 20)
    rows = [ScheduledSequence(slots.allocate(20), prompt, None, True) for _ in range(3)]
    computed, own = [], RowForward.__call__

    def fail(forward: RowForward, token_ids: list[int], *arguments: Any, **options: Any) -> Any:
        computed.append(len(token_ids))
        if len(computed) == 2:
            raise RuntimeError("a passing fault")
        return own(forward, token_ids, *arguments, **options)

    monkeypatch.setattr(RowForward, "__call__", fail)
    with pytest.raises(RuntimeError):
        runner.step(rows)
    assert [one.kv_slot.length for one in rows] == [0, 0, 0]
    logits = runner.step(rows).clone()
    assert computed == [11] * 4
    rows[0].kv_slot.length -= len(prompt)  # as after an interrupt
    again = runner.step(rows[:1])
    assert computed == [11] * 4
    wanted = world.peft.logits(None, prompt)[-1]
    assert torch.allclose(torch.cat([logits, again]), wanted.expand(4, -1), atol=1e-4)
    # The same token once more is another one.
    token = [ScheduledSequence(rows[0].kv_slot, [17], None, True)]
    runner.step(token)
    assert torch.allclose(runner.step(token)[0], world.peft.logits(None, [*prompt, 17, 17])[-1], atol=1e-4)
    assert computed[4:] == [12, 13]


def test_a_sequence_that_always_fails_ends_alone(bloom: World):
    base, poison = bloom.load(), VOCABULARY - 1

    def fail(_: object, inputs: tuple[torch.Tensor]) -> None:
        if (inputs[0] == poison).any():
            raise RuntimeError("poisoned")

    base.model.get_input_embeddings().register_forward_pre_hook(fail)
    engine = BatchingEngine(base, EngineLimits(kv_cache_mib=16), runner=RowRunner(base, max_loras=2))
    got = outcomes(engine, [request(PROMPTS[0]), request([5, poison, 7]), request(PROMPTS[2])])
    assert isinstance(got[1], GenerationError)
    assert [got[0], got[2]] == [bloom.peft.generate(None, PROMPTS[index], 12) for index in (0, 2)]
    assert counts(engine) == NOTHING
    engine.close()


def test_tokens_that_are_dropped_leave_nothing_behind(world: World):
    runner = RowRunner(world.load(), max_loras=1)
    slots, _ = runner.make_caches(1 << 20)
    slot, prompt = slots.allocate(20), PROMPTS[2]
    assert slot
    runner.step([ScheduledSequence(slot, prompt, None, True)])
    runner.step([ScheduledSequence(slot, [17], None, True)])
    slot.length -= 1
    logits = runner.step([ScheduledSequence(slot, [23], None, True)])
    wanted = world.peft.logits(None, [*prompt, 23])[-1]
    assert torch.allclose(logits[0], wanted, atol=1e-4)
    assert slot.length == len(prompt) + 1


# Memory


@pytest.mark.parametrize("name", ["bloom", "mamba2", "jamba"])
def test_a_slot_counts_the_bytes_that_transformers_cache_takes(worlds, name: str):
    runner = RowRunner(worlds(name).load(), max_loras=1)
    slots, _ = runner.make_caches(1 << 20)
    slot = slots.allocate(60)
    assert slot
    runner.step([ScheduledSequence(slot, prompt_of(0, 59), None, True)])
    runner.step([ScheduledSequence(slot, [5], None, True)])
    assert slots.bytes == state_bytes(slot.take_state()) + LOGITS + 60 * 8
    assert (slots.num_slots, slots.allocated_tokens) == (1, 60)
    slots.free(slot)
    assert (slots.num_slots, slots.allocated_tokens, slots.bytes) == (0, 0, 0)


def test_sequences_wait_until_there_is_room(bloom: World):
    runner = RowRunner(bloom.load(), max_loras=1)
    slots, _ = runner.make_caches(100 * (1024 + 8) + LOGITS)
    assert slots.max_tokens == 100
    assert slots.can_ever_fit(100)
    assert not slots.can_ever_fit(101)
    first = slots.allocate(60)
    assert first
    assert slots.allocate(41) is None
    slots.free(first)
    assert slots.allocate(100)
    slots.clear()
    assert slots.num_slots == 0


def test_a_request_that_never_fits_is_refused(bloom: World):
    engine = bloom.engine(kv_cache_mib=1)
    with pytest.raises(RequestTooLongError, match="never fit the 1014 tokens"):
        engine.generate([request([5] * 1010)])
    engine.close()


# Whatever else the engine does


def test_answers_stream_end_early_and_keep_a_format(bloom: World):
    engine = bloom.engine()
    stream = engine.stream(request(PROMPTS[0]))
    first = [next(stream).token_id for _ in range(3)]
    assert first == bloom.peft.generate(None, PROMPTS[0], 3)
    stream.close()
    sampling = SamplingParams(max_tokens=12, temperature=1.0, seed=1, n=3)
    answers = engine.generate([Request(PROMPTS[2], None, sampling, OutputFormat.of(regex="[a-c]{4}"))])[0]
    assert all(re.fullmatch("[a-c]{4}", answer.text) for answer in answers)
    assert len({answer.text for answer in answers}) > 1
    assert counts(engine) == NOTHING
    engine.close()


@pytest.mark.parametrize("adapter", [None, "json"])
def test_scores_are_the_logits_of_whole_sequences(world: World, adapter: str | None):
    base = world.load()
    runner = RowRunner(base, max_loras=1)
    runner.load_adapter(
        0,
        load_folder_deltas(world.adapters["json"], base.model, base.linear_layers, dtype=base.compute_dtype),
    )
    positions = [[20, 21, 29], [], [0, 10]]
    got = runner.score(PROMPTS, positions, 0 if adapter else None)
    wanted = [world.peft.logits(adapter, one)[each] for one, each in zip(PROMPTS, positions, strict=True)]
    assert torch.allclose(got, torch.cat(wanted), atol=1e-3, rtol=1e-4)


def test_evaluation_takes_any_base(bloom: World):
    ids = PROMPTS[0]
    example = TokenizedExample(ids, [IGNORE_INDEX] * 20 + ids[20:])
    with Measurer(bloom.load()) as measurer:
        (loss,) = measurer.losses([example], None, lambda _: None)
    logits = bloom.peft.logits(None, ids)[19:-1]
    assert loss == pytest.approx(
        float(cross_entropy(logits, torch.tensor(ids[20:]), reduction="sum")), rel=1e-4
    )
