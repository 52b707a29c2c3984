"""Bases whose layers keep a state for each sequence: the packed batch gives what PEFT and transformers give."""

import gc
from collections.abc import Callable, Sequence
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM

from adapterhub.base.loading import load_base
from adapterhub.config import EngineLimits
from adapterhub.engine import BatchingEngine, PackedRunner, ScheduledSequence
from adapterhub.engine.kv.cache import KVCache, KVSlot, KVSlotPool
from adapterhub.engine.kv.stateful_layers import find_stateful_layers
from adapterhub.engine.kv.states import StateBatch
from adapterhub.engine.runners.choosing import make_runner
from adapterhub.errors import EngineError
from tests.engine.hybrids import LINEAR, hybrid_config
from tests.engine.maker import NOTHING, Reference, counts, make_adapters, prompt_of, request, sources_of
from tests.tiny import make_base

CPU = torch.device("cpu")
SLOW = ("granitemoehybrid", "nemotron_h")
KINDS = ("qwen3_5_text", "lfm2", "falcon_h1", "mamba", "mamba2")
ALL = [*KINDS, *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)]
LENGTHS = (1, 5, 23, 40)
LIMITS = EngineLimits(max_batch_size=8, max_num_batched_tokens=16, kv_cache_mib=8)  # prompts in chunks


class World(NamedTuple):
    base: Path
    adapters: dict[str, Path]
    reference: Reference


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], World]:
    """Makes each base once, with two adapters."""

    @cache
    def make(kind: str) -> World:
        root = tmp_path_factory.mktemp(kind)
        base = make_base(root / "base", config=hybrid_config(kind), std=0.2)
        linear = LINEAR.get(kind, "all-linear")
        settings = {"one": {"r": 4, "target_modules": linear}, "two": {"r": 6, "target_modules": linear}}
        adapters = make_adapters(root, base, settings)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        return World(base, adapters, Reference(model, adapters))

    return make


@pytest.fixture
def qwen(worlds) -> World:
    return worlds("qwen3_5_text")


def runner_of(world: World) -> PackedRunner:
    return PackedRunner(load_base(world.base, quantization=None, device="cpu"), max_loras=2)


def slot_of(cache: KVCache) -> KVSlot:
    slot = cache.allocate(60)
    assert slot is not None
    return slot


def step(runner: PackedRunner, slot: KVSlot, token_ids: list[int]) -> torch.Tensor:
    return runner.step([ScheduledSequence(slot, token_ids, None, needs_logits=True)])[0].clone()


def all_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ALL)
def test_a_mixed_batch_has_the_tokens_of_peft(kind: str, worlds):
    world = worlds(kind)
    sources = sources_of(world.adapters)
    rows = [(name, prompt_of(length, length)) for length in LENGTHS for name in (None, "one", "two")]
    base = load_base(world.base, quantization=None, device="cpu")
    engine = BatchingEngine(base, LIMITS, runner=PackedRunner(base, max_loras=LIMITS.max_loras))

    # Twelve sequences for eight places, and of different lengths: slots are freed and move while others run.
    lengths = [4 + 3 * (index % 4) for index in range(len(rows))]
    batch = [
        request(prompt, sources.get(name), max_tokens=n)
        for (name, prompt), n in zip(rows, lengths, strict=True)
    ]
    answers = [list(one.token_ids) for (one,) in engine.generate(batch)]

    expected = [
        world.reference.generate(name, prompt, n) for (name, prompt), n in zip(rows, lengths, strict=True)
    ]
    assert answers == expected
    assert len({tuple(tokens[:4]) for tokens in expected}) > len(LENGTHS)  # adapters change them
    assert counts(engine) == NOTHING


@pytest.mark.parametrize("kind", ["qwen3_5_text", "falcon_h1"])
def test_steps_that_fail_change_no_answer(kind: str, worlds, monkeypatch):
    """A step fails when it has computed everything, is run again in halves, and those fail too now and then."""
    world = worlds(kind)
    base = load_base(world.base, quantization=None, device="cpu")
    runner = PackedRunner(base, max_loras=LIMITS.max_loras)
    compute, failing = runner.step, cycle([False, True, True, False, False])

    def fail(sequences: Sequence[ScheduledSequence]) -> torch.Tensor:
        logits = compute(sequences)
        if len(sequences) > 1 and next(failing):
            for one in sequences:
                one.kv_slot.length -= len(one.token_ids)
            raise RuntimeError("a passing fault")
        return logits

    monkeypatch.setattr(runner, "step", fail)
    prompts = [prompt_of(length, length) for length in (30, 1, 3, 17, 40, 2)]
    answers = BatchingEngine(base, LIMITS, runner=runner).generate([request(one) for one in prompts])
    assert [list(one.token_ids) for (one,) in answers] == [
        world.reference.generate(None, one, 12) for one in prompts
    ]


@pytest.mark.parametrize("kind", ALL)
def test_scores_are_those_of_peft(kind: str, worlds):
    world, prompt = worlds(kind), prompt_of(7, 19)

    scores = runner_of(world).score([prompt[:3], prompt], [[0, 2], range(19)], None)

    expected = world.reference.logits(None, prompt)
    all_close(scores, torch.cat([expected[[0, 2]], expected]))


class TestStates:
    """A sequence's states follow what happens to the sequence."""

    def test_a_failed_step_leaves_them_as_they_were(self, qwen, monkeypatch):
        runner, prompt = runner_of(qwen), prompt_of(3, 20)
        slot = slot_of(KVCache(runner.kv_shape, 1000))
        step(runner, slot, prompt[:9])

        def fail(*_: object) -> None:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(runner._base.model.model.norm, "forward", fail)  # behind all layers
            with pytest.raises(MemoryError):
                step(runner, slot, prompt[9:19])
        step(runner, slot, prompt[9:19])

        all_close(step(runner, slot, prompt[19:]), qwen.reference.logits(None, prompt)[-1])

    def test_they_are_not_lost_when_they_cannot_be_written(self, qwen, monkeypatch):
        runner, prompt = runner_of(qwen), prompt_of(3, 20)
        slot = slot_of(KVCache(runner.kv_shape, 1000))
        step(runner, slot, prompt[:19])

        def fail(*_: object) -> None:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(StateBatch, "commit", fail)
            with pytest.raises(MemoryError):
                step(runner, slot, prompt[19:])

        all_close(step(runner, slot, prompt[19:]), qwen.reference.logits(None, prompt)[-1])

    def test_the_last_step_can_be_taken_back(self, qwen):
        runner, prompt = runner_of(qwen), prompt_of(4, 12)
        slot = slot_of(KVCache(runner.kv_shape, 1000))
        step(runner, slot, prompt[:11])
        first = step(runner, slot, prompt[11:])
        slot.length -= 1  # the engine was interrupted before it sampled

        again = step(runner, slot, prompt[11:])

        assert torch.equal(again, first)
        all_close(again, qwen.reference.logits(None, prompt)[-1])

    def test_an_earlier_token_cannot(self, qwen):
        runner, prompt = runner_of(qwen), prompt_of(4, 12)
        slot = slot_of(KVCache(runner.kv_shape, 1000))
        for token in prompt[:4]:
            step(runner, slot, [token])
        slot.length -= 2
        with pytest.raises(EngineError, match="cannot go back"):
            step(runner, slot, prompt[2:3])

    def test_they_move_with_their_slot(self, qwen):
        runner, prompt = runner_of(qwen), prompt_of(5, 12)
        cache = KVCache(runner.kv_shape, 10_000)
        first, second = slot_of(cache), slot_of(cache)
        step(runner, first, prompt_of(6, 9))
        step(runner, second, prompt[:11])
        cache.free(first)
        assert (second.index, first.is_used) == (0, False)

        all_close(step(runner, second, prompt[11:]), qwen.reference.logits(None, prompt)[-1])

    def test_a_slot_that_is_used_again_starts_without(self, qwen):
        runner, prompt = runner_of(qwen), prompt_of(5, 12)
        cache = KVCache(runner.kv_shape, 10_000)
        used = slot_of(cache)
        step(runner, used, prompt_of(6, 9))
        cache.free(used)
        slot = slot_of(cache)
        assert slot.index == 0

        all_close(step(runner, slot, prompt), qwen.reference.logits(None, prompt)[-1])

    def test_a_cleared_cache_is_not_written_to_and_takes_no_memory(self, qwen):
        runner = runner_of(qwen)
        cache = KVCache(runner.kv_shape, 1000)
        slot = slot_of(cache)
        step(
            runner, slot, prompt_of(3, 9)
        )  # the runner still has the slot: its states wait for the next step
        cache.clear()
        assert (slot.is_used, slot.pool.bytes, cache.bytes) == (False, 0, 0)

        prompt = prompt_of(4, 12)
        all_close(step(runner, slot_of(cache), prompt), qwen.reference.logits(None, prompt)[-1])


class TestMemory:
    """States count among what the engine has memory for: in the slots, and once more for what a step computed."""

    def test_a_slot_takes_what_its_states_take(self, qwen):
        shape = runner_of(qwen).kv_shape
        # One layer: the inputs of a convolution, and the recurrent state.
        states = 2 * 4 * (64 * 4 + 4 * 8 * 8)
        assert shape.states_bytes == states
        assert shape.units_per_slot == -(-states // shape.bytes_per_token)

        cache = KVCache(shape, 64 + shape.units_per_slot)
        assert cache.max_tokens == 64
        assert cache.can_ever_fit(64)
        assert not cache.can_ever_fit(65)
        assert not KVCache(shape, 63 + shape.units_per_slot).can_ever_fit(64)
        assert cache.allocate(64) is not None
        assert cache.allocate(1) is None
        assert cache.bytes == 64 * shape.bytes_per_token + states
        assert cache.bytes <= (64 + shape.units_per_slot) * shape.bytes_per_token

    def test_a_base_without_attention_needs_no_memory_for_tokens(self, worlds):
        runner = runner_of(worlds("mamba2"))
        states = runner.kv_shape.states_bytes
        cache, prefixes = runner.make_caches(3 * states)

        assert cache.can_ever_fit(100_000)
        assert [cache.allocate(length) is not None for length in (10, 100_000, 70, 1)] == [True] * 3 + [False]
        assert (cache.bytes, cache.allocated_tokens) == (3 * states, 0)
        assert prefixes.num_tokens == 0


def test_a_base_that_cannot_be_quantised_says_so(worlds):
    """Mamba multiplies by the weight of a layer itself."""
    base = load_base(worlds("mamba").base, quantization="nf4", device="cpu")
    with pytest.raises(EngineError, match="MambaForCausalLM cannot be served") as raised:
        make_runner(base, max_loras=1)
    assert "quantization=None" in (raised.value.hint or "")


class Echoing(torch.nn.Module):
    """A module around a short convolution that keeps a state of its own: it adds the output for the token before."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states, past_key_values=None, **_):
        output = self.inner(hidden_states, past_key_values)
        seen = torch.nn.functional.pad(output.transpose(1, 2), (1, 0))
        if past_key_values is not None:
            before = past_key_values.get_conv_state(self.inner.layer_idx, state_idx=1)
            if before is not None:
                seen[..., :1] = before
            past_key_values.update_conv_state(
                output.transpose(1, 2), self.inner.layer_idx, 1, conv_kernel_size=1
            )
        return output + seen[..., :-1].transpose(1, 2)


def test_modules_with_states_may_lie_within_one_another(worlds):
    base, prompt = load_base(worlds("lfm2").base, quantization=None, device="cpu"), prompt_of(8, 12)
    base.model.config.number_of_conv_states = 2
    layer = base.model.model.layers[0]
    layer.conv = Echoing(layer.conv)
    with torch.inference_mode():
        expected = base.model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0]
    layers, shapes = find_stateful_layers(base.model, CPU)
    assert [type(one.module) for one in layers] == [Echoing]
    assert [one.index for one in shapes] == [0, 1]

    runner = PackedRunner(base, max_loras=1)
    cache = KVCache(runner.kv_shape, 1000)
    slot, other = slot_of(cache), slot_of(cache)
    step(runner, slot, prompt[:7])
    step(runner, other, prompt[:4])
    scheduled = [ScheduledSequence(one, prompt[7:11], None, needs_logits=True) for one in (slot, other)]
    all_close(runner.step(scheduled)[0], expected[10])
    scheduled = [ScheduledSequence(one, prompt[11:], None, needs_logits=True) for one in (slot, other)]
    all_close(runner.step(scheduled)[0], expected[11])


def num_pools() -> int:
    gc.collect()
    return sum(isinstance(one, KVSlotPool) for one in gc.get_objects())


def test_the_proof_leaves_no_states_in_memory(worlds):
    base = load_base(worlds("lfm2").base, quantization=None, device="cpu")
    before = num_pools()
    assert make_runner(base, max_loras=1).name == "packed"
    assert num_pools() == before


def test_scores_leave_nothing_in_memory_and_running_sequences_as_they_are(qwen):
    runner, prompt = runner_of(qwen), prompt_of(7, 19)
    slot = slot_of(KVCache(runner.kv_shape, 1000))
    step(runner, slot, prompt[:18])
    before = num_pools()
    runner.score([prompt_of(8, 30)], [[29]], None)
    assert num_pools() == before
    all_close(step(runner, slot, prompt[18:]), qwen.reference.logits(None, prompt)[-1])


def test_a_released_base_computes_as_before(worlds):
    world, prompt = worlds("qwen3_5_text"), prompt_of(9, 8)
    base = load_base(world.base, quantization=None, device="cpu")
    runner = PackedRunner(base, max_loras=1)
    with pytest.raises(EngineError, match="outside its engine"):
        base.model(input_ids=torch.tensor([prompt]))
    runner.release()
    with torch.inference_mode():
        all_close(
            base.model(input_ids=torch.tensor([prompt])).logits[0], world.reference.logits(None, prompt)
        )


class TestFindStatefulLayers:
    """What a forward pass shows of a model's layers."""

    def layers(self, world: World):
        model = AutoModelForCausalLM.from_pretrained(world.base, dtype=torch.float32)
        return find_stateful_layers(model.eval(), CPU)

    def test_a_layer_may_have_attention_and_states(self, worlds):
        layers, shapes = self.layers(worlds("falcon_h1"))
        assert [type(one.module).__name__ for one in layers] == ["FalconH1Mixer"] * 2
        assert [(one.layer, one.kind) for one in shapes] == [
            (0, "conv"), (0, "recurrent"), (1, "conv"), (1, "recurrent")
        ]  # fmt: skip

    @pytest.mark.parametrize(("kind", "continues"), [("qwen3_5_text", True), ("mamba", False)])
    def test_whether_a_layer_continues_a_prompt_by_several_tokens(self, kind, continues, worlds):
        layers, _ = self.layers(worlds(kind))
        assert {layer.continues_chunks for layer in layers} == {continues}

    def test_a_base_of_attention_alone_has_none(self, tiny_base):
        model = AutoModelForCausalLM.from_pretrained(tiny_base)
        assert find_stateful_layers(model, CPU) == ([], ())

    def test_states_that_are_not_in_the_cache_are_refused(self):
        model = AutoModelForCausalLM.from_config(hybrid_config("minimax")).eval()
        with pytest.raises(EngineError, match=r"MiniMaxForCausalLM .*states in a way of its own"):
            find_stateful_layers(model, CPU)
