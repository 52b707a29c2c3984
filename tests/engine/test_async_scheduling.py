"""Steps that are queued before the tokens of the one before are known: the answers stay the same."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from adapterhub.base.loading import load_base
from adapterhub.config import EngineLimits
from adapterhub.engine.batching import BatchingEngine, adapter_loader
from adapterhub.engine.decoding.detokenizer import IncrementalDetokenizer
from adapterhub.engine.interface import Completion, Request
from adapterhub.engine.runner import ScheduledSequence
from adapterhub.engine.runners.packed import PackedRunner
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.errors import EngineClosedError
from tests.engine.maker import prompt_of, request, sources_of
from tests.engine.recorded_graph import GatherOps, Graphs
from tests.tiny import make_adapter, make_base

PROMPTS = [prompt_of(seed, 3 + 2 * seed) for seed in range(6)]


class Counting(PackedRunner):
    """A runner that counts its steps; a test may replace `before_step_ahead`."""

    ahead = 0
    before_step_ahead: Callable[[], object] = staticmethod(lambda: None)

    def step_ahead(
        self, sequences: Sequence[ScheduledSequence], argmax: torch.Tensor, rows: Sequence[int]
    ) -> torch.Tensor | None:
        """As that of `PackedRunner`."""
        self.before_step_ahead()
        logits = super().step_ahead(sequences, argmax, rows)
        self.ahead += logits is not None
        return logits


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base and two adapters."""
    root = tmp_path_factory.mktemp("async")
    base = make_base(root / "base", "llama")
    adapters = {name: make_adapter(root / name, base, seed=seed) for seed, name in enumerate(("one", "two"))}
    return {"base": base, **adapters}


@pytest.fixture(autouse=True)
def _kernels_that_are_recorded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("adapterhub.lora.stacked_weights.choose_kernels", lambda device: GatherOps)


class Served:
    """An engine, its runner, and its adapters."""

    def __init__(self, folders: dict[str, Path], *, async_scheduling: bool, **limits: Any) -> None:
        base = load_base(folders["base"], quantization=None, compute_dtype="float32", device="cpu")
        sizes = EngineLimits(max_loras=2, kv_cache_mib=16, **limits)
        load = adapter_loader(base, sizes)
        base.claim()
        self.runner = Counting(base, max_loras=2, make_graph=Graphs())
        self.engine = BatchingEngine(
            base, sizes, runner=self.runner, load_adapter=load, async_scheduling=async_scheduling
        )
        self._sources = sources_of({name: folders[name] for name in ("one", "two")})
        for source in self._sources.values():
            self.engine.preload(source)

    def requests(self, **sampling: Any) -> list[Request]:
        """One request for each prompt, with one adapter, the other or none in turn."""
        adapters = [None, *self._sources.values()]
        return [
            Request(prompt, adapters[i % 3], SamplingParams(max_tokens=4 + 3 * i, **sampling))
            for i, prompt in enumerate(PROMPTS)
        ]


@pytest.fixture
def plain(folders: dict[str, Path]) -> Iterator[Served]:
    """One that samples each step's tokens before it queues the next."""
    served = Served(folders, async_scheduling=False)
    yield served
    served.engine.close()


@pytest.fixture
def ahead(folders: dict[str, Path]) -> Iterator[Served]:
    """One that does not."""
    served = Served(folders, async_scheduling=True)
    yield served
    served.engine.close()


def tokens(completions: list[list[Completion]]) -> list[tuple[int, ...]]:
    return [one.token_ids for (one,) in completions]


def test_answers_are_the_same(plain: Served, ahead: Served):
    wanted = plain.engine.generate(plain.requests(ignore_eos=True))
    got = ahead.engine.generate(ahead.requests(ignore_eos=True))
    assert got == wanted
    assert plain.runner.ahead == 0
    # The longest answer has 19 tokens: the first is the prompt's, and the step after it is not queued ahead.
    assert ahead.runner.ahead == 17


def test_no_step_is_queued_behind_the_last_token(ahead: Served):
    """Its keys and values would have no place."""
    ((answer,),) = ahead.engine.generate([request(PROMPTS[0], None, max_tokens=6, ignore_eos=True)])
    assert len(answer.token_ids) == 6
    assert ahead.runner.ahead == 4  # the first token is the prompt's, and the second's step is in order


def test_an_answer_that_ends_early_leaves_the_others_as_they_are(plain: Served, ahead: Served):
    """By a stop token or string: what was queued for it is dropped."""
    texts = plain.engine.generate(plain.requests(ignore_eos=True))
    stop_token_ids = sorted({one.token_ids[3] for (one,) in texts[2:]})
    stop = [one.text[4:6] for (one,) in texts[3:]]
    sampling = {"stop_token_ids": stop_token_ids, "stop": [text for text in stop if text.strip()]}
    wanted = plain.engine.generate(plain.requests(**sampling))
    assert ahead.engine.generate(ahead.requests(**sampling)) == wanted
    assert {one.finish_reason for (one,) in wanted} == {"stop", "length"}
    assert ahead.runner.ahead > 0
    figures = [(stats.tokens, stats.finished) for stats in (plain.engine.stats(), ahead.engine.stats())]
    generated = sum(len(one.token_ids) for (one,) in wanted)
    assert figures[1][0] == figures[0][0] - sum(len(one.token_ids) for (one,) in texts) == generated
    assert figures[1][1].get("error", 0) == 0


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0, "seed": 3},
        {"repetition_penalty": 1.2},
        {"logprobs": 2},
        {"min_tokens": 3},
        {"logit_bias": {5: 3.0}},
    ],
    ids=str,
)
def test_steps_that_depend_on_the_tokens_before_wait_for_them(
    plain: Served, ahead: Served, sampling: dict[str, Any]
):
    wanted = plain.engine.generate(plain.requests(**sampling))
    assert tokens(ahead.engine.generate(ahead.requests(**sampling))) == tokens(wanted)
    assert ahead.runner.ahead == 0


def test_one_such_answer_in_the_batch_holds_the_others_up_only_while_it_runs(plain: Served, ahead: Served):
    def requests(served: Served) -> list[Request]:
        drawn = Request(PROMPTS[0], None, SamplingParams(max_tokens=5, temperature=1.0, seed=1))
        return [drawn, *served.requests(ignore_eos=True)[3:]]

    assert ahead.engine.generate(requests(ahead)) == plain.engine.generate(requests(plain))
    assert 0 < ahead.runner.ahead < 17


def test_requests_that_come_meanwhile_are_served(folders: dict[str, Path], plain: Served):
    """Of six requests two run at a time: each that ends lets another start in the step after."""
    served = Served(folders, async_scheduling=True, max_batch_size=2)
    assert served.engine.generate(served.requests(ignore_eos=True)) == plain.engine.generate(
        plain.requests(ignore_eos=True)
    )
    assert served.runner.ahead > 5
    assert served.engine.stats().kv_slots == 0
    served.engine.close()


def test_an_abandoned_answer_frees_its_slots_and_hurts_no_other(plain: Served, ahead: Served):
    long = request(PROMPTS[1], None, max_tokens=40, ignore_eos=True)
    other = ahead.engine.stream(request(PROMPTS[2], None, max_tokens=40, ignore_eos=True))
    abandoned = ahead.engine.stream(long)
    got = [next(other).token_id for _ in range(3)]
    for _ in range(5):
        next(abandoned)
    abandoned.close()
    # Its KV slot goes to this one while a step that was queued for it has not been looked at.
    ((third,),) = ahead.engine.generate([request(PROMPTS[4], None, max_tokens=12, ignore_eos=True)])
    got += [output.token_id for output in other]
    wanted = tokens(
        plain.engine.generate(
            [
                request(PROMPTS[2], None, max_tokens=40, ignore_eos=True),
                request(PROMPTS[4], None, max_tokens=12, ignore_eos=True),
            ]
        )
    )
    assert [tuple(got), third.token_ids] == wanted
    assert ahead.engine.stats().kv_slots == 0
    assert ahead.runner.ahead > 10


def test_a_step_that_fails_is_computed_again_in_order(plain: Served, ahead: Served):
    def fail() -> None:
        raise RuntimeError("CUDA error: out of memory")

    ahead.runner.before_step_ahead = fail
    got = ahead.engine.generate(ahead.requests(ignore_eos=True))
    assert got == plain.engine.generate(plain.requests(ignore_eos=True))
    assert ahead.runner.ahead == 0


def test_an_interrupt_loses_no_token_of_the_others(plain: Served, ahead: Served):
    """Ctrl-C while a step is queued: what was not sampled is computed again."""
    calls = 0

    def interrupt_once() -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt

    ahead.runner.before_step_ahead = interrupt_once
    stream = ahead.engine.stream(request(PROMPTS[2], None, max_tokens=30, ignore_eos=True))
    got: list[int] = [next(stream).token_id]
    interrupted = ahead.engine.stream(request(PROMPTS[1], None, max_tokens=30, ignore_eos=True))
    with pytest.raises(KeyboardInterrupt):
        for _ in interrupted:
            pass
    got += [output.token_id for output in stream]
    ((wanted,),) = plain.engine.generate([request(PROMPTS[2], None, max_tokens=30, ignore_eos=True)])
    assert tuple(got) == wanted.token_ids


def test_an_interrupt_while_tokens_are_sampled_drops_the_queued_step(
    plain: Served, ahead: Served, monkeypatch: pytest.MonkeyPatch
):
    push, tokens_of = IncrementalDetokenizer.push, Counter[int]()

    def interrupt_once(detokenizer: IncrementalDetokenizer, token_id: int) -> str:
        """At the fifth token of the first answer, before that of the second in the same step."""
        tokens_of[id(detokenizer)] += 1
        if tokens_of[id(detokenizer)] == 5 and next(iter(tokens_of)) == id(detokenizer):
            raise KeyboardInterrupt
        return push(detokenizer, token_id)

    requests = [request(PROMPTS[1 + i], None, max_tokens=30, ignore_eos=True) for i in range(2)]
    wanted = tokens(plain.engine.generate(requests))
    monkeypatch.setattr(IncrementalDetokenizer, "push", interrupt_once)
    first, second = (ahead.engine.stream(one) for one in requests)
    next(first)
    got = [next(second).token_id]
    with pytest.raises(KeyboardInterrupt):
        list(first)
    assert ahead.runner.ahead > 0
    got += [output.token_id for output in second]
    assert tuple(got) == wanted[1]


def test_closing_ends_what_is_queued(ahead: Served):
    stream = ahead.engine.stream(request(PROMPTS[2], None, max_tokens=40, ignore_eos=True))
    for _ in range(4):
        next(stream)
    closing = threading.Thread(target=ahead.engine.close)
    closing.start()
    closing.join(30)
    with pytest.raises(EngineClosedError, match="closed"):
        list(stream)
    assert ahead.engine.stats().running == 0


def test_a_runner_without_graphs_queues_nothing(folders: dict[str, Path], plain: Served):
    base = load_base(folders["base"], quantization=None, compute_dtype="float32", device="cpu")
    engine = BatchingEngine(base, async_scheduling=True)
    got = engine.generate([request(PROMPTS[0], None, max_tokens=6, ignore_eos=True)])
    assert got == plain.engine.generate([request(PROMPTS[0], None, max_tokens=6, ignore_eos=True)])
    engine.close()
