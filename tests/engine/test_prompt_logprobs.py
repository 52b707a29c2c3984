"""Log-probabilities of a prompt's tokens are those of transformers and PEFT, whatever else is in the batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from adapterhub.base.loading import load_base
from adapterhub.config import EngineLimits
from adapterhub.engine.batching import BatchingEngine
from adapterhub.engine.decoding.prompt_scorer import PromptScorer
from adapterhub.engine.interface import Completion, PromptLogprobs, Request
from adapterhub.engine.runner import ScheduledSequence
from adapterhub.errors import GenerationError, InvalidRequestError
from adapterhub.lora.request import StoredLoraRequest
from tests.engine.maker import (
    NOTHING,
    Reference,
    Seams,
    answer,
    counts,
    in_threads,
    prompt_of,
    request,
    seams_of,
    sources_of,
)

LONG = 200
LIMITS = EngineLimits(max_loras=4, max_num_batched_tokens=512, kv_cache_mib=64)


@pytest.fixture
def seams(tiny_base: Path) -> Iterator[Seams]:
    seams = seams_of(load_base(tiny_base, quantization=None, device="cpu"), LIMITS)
    yield seams
    seams.engine.close()


@pytest.fixture
def engine(seams: Seams) -> BatchingEngine:
    return seams.engine


@pytest.fixture(scope="module")
def peft(tiny_base: Path, tiny_adapters: dict[str, Path]) -> Reference:
    return Reference(AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32), tiny_adapters)


@pytest.fixture(scope="module")
def sources(tiny_adapters: dict[str, Path]) -> dict[str, StoredLoraRequest]:
    return sources_of(tiny_adapters)


def scored(engine: BatchingEngine, one: Request) -> PromptLogprobs:
    found = answer(engine, one).prompt_logprobs
    assert found is not None
    return found


def check(
    found: PromptLogprobs | None, reference: Reference, name: str | None, prompt: Sequence[int]
) -> None:
    """Compares what was found with the two most probable tokens with the reference's."""
    wanted = reference.logits(name, prompt).log_softmax(-1)
    assert found is not None
    assert found[0] is None
    assert len(found) == len(prompt)
    for place, one in enumerate(found[1:], start=1):
        row = wanted[place - 1]
        assert one is not None
        assert one.token_id == prompt[place]
        assert one.logprob == pytest.approx(float(row[prompt[place]]), abs=1e-4)
        assert list(one.top) == row.topk(2).indices.tolist()
        assert list(one.top.values()) == pytest.approx(row.topk(2).values.tolist(), abs=1e-4)
        assert one.rank == int((row >= row[prompt[place]]).sum())


def test_a_mixed_batch_has_those_of_transformers_and_peft(engine, sources, peft):
    names = [None, *sources]
    prompts = [prompt_of(number, length) for number, length in enumerate((LONG, 40, 7, 150, 2))]
    batch = [(name, prompt) for prompt in prompts for name in names]
    asked = [
        request(prompt, sources[name] if name else None, prompt_logprobs=2, max_tokens=1)
        for name, prompt in batch
    ]
    others = [request(prompt_of(9, 30), sources["json"]), request(prompt_of(8, 30), max_tokens=20)]
    completions = [one for (one,) in engine.generate([*asked, *others])]
    for (name, prompt), completion in zip(batch, completions, strict=False):
        check(completion.prompt_logprobs, peft, name, prompt)
        assert list(completion.token_ids) == peft.generate(name, prompt, 1)
    assert [one.prompt_logprobs for one in completions[-2:]] == [None, None]
    assert [list(one.token_ids) for one in completions[-2:]] == [
        peft.generate("json", prompt_of(9, 30), 12),
        peft.generate(None, prompt_of(8, 30), 20),
    ]


def test_the_prefix_cache_is_not_read_for_them_but_filled(engine, peft):
    prompt = prompt_of(1, 100)
    answer(engine, request(prompt))
    assert answer(engine, request(prompt)).num_cached_tokens == 96
    completion = answer(engine, request(prompt, prompt_logprobs=2))
    assert completion.num_cached_tokens == 0
    check(completion.prompt_logprobs, peft, None, prompt)
    fresh = prompt_of(2, 100)
    scored(engine, request(fresh, prompt_logprobs=2))
    assert answer(engine, request(fresh)).num_cached_tokens == 96


def test_a_step_computes_a_bounded_number_of_them(seams):
    largest = []

    def note(sequences: Sequence[ScheduledSequence]) -> None:
        largest.append(sum(len(one.logit_positions) for one in sequences))

    seams.runner.before_step = note
    batch = [request(prompt_of(number, LONG), prompt_logprobs=0, max_tokens=1) for number in range(4)]
    found = seams.engine.generate(batch)
    assert LONG < max(largest) <= 256
    assert sum(largest) == 4 * LONG
    assert all(len(one.prompt_logprobs) == LONG for (one,) in found)


def test_all_completions_of_a_request_have_them_and_one_computes_them(seams, peft):
    prompt, rows = prompt_of(3, 70), []
    seams.runner.before_step = lambda sequences: rows.append(
        sum(len(one.logit_positions) for one in sequences)
    )
    one = request(prompt, n=3, temperature=1.0, seed=1, prompt_logprobs=2, max_tokens=2)
    (completions,) = seams.engine.generate([one])
    for completion in completions:
        check(completion.prompt_logprobs, peft, None, prompt)
    assert sum(rows) == 70 + 1 + 2 + 2  # the prompt's, and one for each further token


def test_a_stream_has_them_with_its_first_token(engine, peft):
    prompt = prompt_of(4, 20)
    outputs = list(engine.stream(request(prompt, prompt_logprobs=2, max_tokens=4)))
    check(outputs[0].prompt_logprobs, peft, None, prompt)
    assert [one.prompt_logprobs for one in outputs[1:]] == [None] * 3


def test_a_prompt_of_one_token_has_none(engine):
    assert scored(engine, request([5], prompt_logprobs=3)) == (None,)


def test_with_zero_there_is_the_tokens_own_alone(engine):
    found = scored(engine, request(prompt_of(5, 6), prompt_logprobs=0))
    assert all(one and one.top == {} and one.logprob < 0 for one in found[1:])


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_while_they_are_taken_leaves_the_others_right(engine, monkeypatch, interrupt):
    batch = [request(prompt_of(number, LONG), prompt_logprobs=2, max_tokens=2) for number in range(3)]
    wanted = [answer(engine, one) for one in batch]
    original, calls = PromptScorer.add, []

    def breaks(self: PromptScorer, logits: torch.Tensor) -> None:
        calls.append(len(logits))
        if len(calls) == 2:
            raise interrupt
        original(self, logits)

    monkeypatch.setattr(PromptScorer, "add", breaks)
    with pytest.raises(interrupt):
        engine.generate(batch)
    assert counts(engine) == NOTHING
    assert [answer(engine, one) for one in batch] == wanted


def test_a_failure_of_one_leaves_those_of_others_right(engine, monkeypatch):
    batch = [request(prompt_of(number, 60), prompt_logprobs=2, max_tokens=2) for number in range(5)]
    wanted = [answer(engine, one) for one in batch]
    original, calls = PromptScorer.add, []

    def breaks(self: PromptScorer, logits: torch.Tensor) -> None:
        calls.append(len(logits))
        if len(calls) == 2:
            raise GenerationError("a defect")
        original(self, logits)

    monkeypatch.setattr(PromptScorer, "add", breaks)
    ends: list[Completion | None] = [None] * len(batch)

    def ask(number: int) -> None:
        with suppress(GenerationError):
            ends[number] = answer(engine, batch[number])

    in_threads([partial(ask, number) for number in range(len(batch))], 60)
    assert ends.count(None) == 1
    assert all(end in (None, one) for end, one in zip(ends, wanted, strict=True))


def test_what_is_no_number_is_an_error():
    scorer = PromptScorer([0, 1], 1)
    with pytest.raises(GenerationError, match="NaN"):
        scorer.add(torch.tensor([[0.0, math.nan, 0.0]]))
    assert scorer.logprobs == (None,)


def test_a_token_of_probability_zero_has_minus_infinity():
    scorer = PromptScorer([0, 1], 1)
    scorer.add(torch.tensor([[0.0, -math.inf]]))
    (_, one) = scorer.logprobs
    assert one is not None
    assert (one.logprob, one.top, one.rank) == (-math.inf, {0: 0.0}, 2)


@pytest.mark.parametrize("value", [-1, 21, 1.5])
def test_other_numbers_are_refused(value):
    with pytest.raises(InvalidRequestError, match="prompt_logprobs"):
        request([5], prompt_logprobs=value)
