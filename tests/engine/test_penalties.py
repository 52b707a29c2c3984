"""Penalties, biases and bans: against transformers' processors where it has them, else against vLLM's definition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from adapterhub.base.loading import load_base
from adapterhub.config import EngineLimits
from adapterhub.engine.batching import BatchingEngine
from adapterhub.engine.decoding.sampler import Logits, Sampler
from adapterhub.engine.interface import Request
from adapterhub.engine.output_format import OutputFormat
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.errors import InvalidRequestError, RequestTooLongError
from tests.engine.maker import answer, prompt_of, request, tokens

CPU = torch.device("cpu")
VOCABULARY = 40
ENDS = (1, 7)

token_ids = st.integers(0, VOCABULARY - 1)
histories = st.tuples(st.lists(token_ids, max_size=20), st.lists(token_ids, max_size=100))


def logits_of(seed: int) -> torch.Tensor:
    return 3 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed))


def scores(
    params: SamplingParams,
    history: tuple[Sequence[int], Sequence[int]],
    logits: torch.Tensor,
) -> torch.Tensor:
    """The tokens in the order in which the sampler takes them; it does not tell their scores."""
    prompt, generated = history
    sampler = Sampler(params, 0, CPU, prompt=prompt, end_token_ids=ENDS)
    for token in generated:
        sampler.accept(token)
    order = []
    allowed = torch.ones(VOCABULARY, dtype=torch.bool)
    for _ in range(VOCABULARY):
        token, _ = sampler.draw(Logits.of(logits[None])[0], allowed)
        order.append(token)
        allowed[token] = False
        if not allowed.any():
            break
    return torch.tensor(order)


def order_of(wanted: torch.Tensor) -> torch.Tensor:
    """The finite scores' tokens from the best to the worst; the banned ones, which come last, are left out."""
    order = wanted.argsort(descending=True)
    return order[wanted[order].isfinite()]


def assert_same_order(found: torch.Tensor, wanted: torch.Tensor) -> None:
    order = order_of(wanted)
    assert found[: len(order)].tolist() == order.tolist()


def by_hand(
    logits: torch.Tensor, generated: Sequence[int], frequency: float, presence: float, bias: dict[int, float]
) -> torch.Tensor:
    """OpenAI's definition: logit + bias - frequency * count - presence * (count > 0)."""
    wanted = logits.clone()
    for token, value in bias.items():
        wanted[token] += value
    for token, count in Counter(generated).items():
        wanted[token] -= frequency * count + presence
    return wanted


@examples(max_examples=30)
@given(
    st.integers(0, 99),
    histories,
    st.floats(-2, 2, width=16),
    st.floats(-2, 2, width=16),
    st.dictionaries(token_ids, st.floats(-100, 100, width=16), max_size=5),
)
def test_frequency_presence_and_bias_are_those_of_openai(seed, history, frequency, presence, bias):
    params = SamplingParams(frequency_penalty=frequency, presence_penalty=presence, logit_bias=bias)
    wanted = by_hand(logits_of(seed), history[1], frequency, presence, bias)
    found = scores(params, history, logits_of(seed))
    gaps = wanted[found][:-1] - wanted[found][1:]
    assert (gaps > -1e-4).all(), "the tokens come in the order of their scores"


@examples(max_examples=30)
@given(st.integers(0, 99), histories, st.floats(0.5, 2.0, width=16))
def test_the_repetition_penalty_is_transformers(seed: int, history, penalty: float):
    ids = torch.tensor([[*history[0], *history[1]]], dtype=torch.long)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits_of(seed)[None])[0]
    assert_same_order(scores(SamplingParams(repetition_penalty=penalty), history, logits_of(seed)), theirs)


@examples(max_examples=30)
@given(st.integers(0, 99), histories, st.lists(st.lists(token_ids, min_size=1, max_size=3), max_size=6))
def test_bad_words_ids_are_transformers(seed: int, history, words: list[list[int]]):
    params = SamplingParams(bad_words_ids=words, suppress_tokens=[3])
    ids = torch.tensor([[*history[0], *history[1]]], dtype=torch.long)
    theirs = SuppressTokensLogitsProcessor([3])(ids, logits_of(seed)[None])
    if words:
        theirs = NoBadWordsLogitsProcessor(words)(ids, theirs)
    found = scores(params, history, logits_of(seed))
    if theirs.isfinite().any():
        assert_same_order(found, theirs[0])


@examples(max_examples=30)
@given(st.integers(0, 99), histories, st.integers(0, 100))
def test_min_tokens_is_transformers_min_new_tokens(seed: int, history, minimum: int):
    prompt, generated = history
    ids = torch.tensor([[*prompt, *generated]], dtype=torch.long)
    processor = MinNewTokensLengthLogitsProcessor(len(prompt), minimum, list(ENDS), device="cpu")
    theirs = processor(ids, logits_of(seed)[None])[0]
    assert_same_order(scores(SamplingParams(min_tokens=minimum), history, logits_of(seed)), theirs)


@examples(max_examples=30)
@given(st.integers(0, 99), st.dictionaries(token_ids, st.floats(-100, 100, width=16), min_size=1, max_size=5))
def test_a_bias_of_single_tokens_is_transformers_sequence_bias(seed: int, bias: dict[int, float]):
    theirs = SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()])
    wanted = theirs(torch.tensor([[5]]), logits_of(seed)[None])[0]
    assert_same_order(scores(SamplingParams(logit_bias=bias), ([5], []), logits_of(seed)), wanted)


def test_bad_words_given_as_texts_begin_in_the_answer():
    """As in vLLM; those given as ids may begin in the prompt, as in transformers."""
    logits = torch.zeros(VOCABULARY)
    logits[9] = 5.0
    (row,) = Logits.of(logits[None])
    for generated, wanted in (([], 9), ([4], 0)):
        sampler = Sampler(SamplingParams(bad_words=["x"]), 0, CPU, prompt=[4], bad_words=[[4, 9]])
        for token in generated:
            sampler.accept(token)
        assert sampler.draw(row)[0] == wanted
    by_ids = Sampler(SamplingParams(bad_words_ids=[[4, 9]]), 0, CPU, prompt=[4])
    assert by_ids.draw(row)[0] == 0


def test_a_ban_never_empties_what_a_grammar_allows():
    (row,) = Logits.of(logits_of(1)[None])
    allowed = torch.zeros(VOCABULARY, dtype=torch.bool)
    allowed[7] = True
    for params in (
        SamplingParams(min_tokens=5),
        SamplingParams(suppress_tokens=[7]),
        SamplingParams(bad_words_ids=[[7]]),
        SamplingParams(logit_bias={7: -100}, temperature=1.0),
    ):
        assert Sampler(params, 0, CPU, end_token_ids=ENDS).draw(row, allowed)[0] == 7


def test_the_logits_are_not_changed():
    """They belong to the step, and are those of the log-probabilities."""
    logits = logits_of(2)
    params = SamplingParams(
        frequency_penalty=2.0, repetition_penalty=2.0, logit_bias={3: 5.0}, suppress_tokens=[4], logprobs=0
    )
    sampler = Sampler(params, 0, CPU, prompt=[3, 4, 5])
    sampler.accept(6)
    token, logprob = sampler.draw(Logits.of(logits[None])[0])
    assert torch.equal(logits, logits_of(2))
    assert logprob is not None
    assert logprob.logprob == pytest.approx(float(logits.log_softmax(-1)[token]))


# In the engine


@pytest.fixture(scope="module")
def engine(tiny_base: Path) -> Iterator[BatchingEngine]:
    engine = BatchingEngine(load_base(tiny_base, quantization=None, device="cpu"), EngineLimits())
    yield engine
    engine.close()


@torch.inference_mode()
def test_penalised_answers_are_those_of_the_model_computed_by_hand(engine: BatchingEngine, tiny_base: Path):
    settings = {"frequency_penalty": 0.5, "presence_penalty": -1.0, "logit_bias": {50: 2.0, 60: -100.0}}
    prompt, wanted = [*prompt_of(1, 8), 50, 50], []
    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
    for _ in range(20):
        logits = model(input_ids=torch.tensor([[*prompt, *wanted]])).logits[0, -1]
        wanted.append(int(by_hand(logits, wanted, 0.5, -1.0, settings["logit_bias"]).argmax()))
    found = tokens(engine, request(prompt, max_tokens=20, **settings))
    assert found == wanted != tokens(engine, request(prompt, max_tokens=20))


def test_min_tokens_keeps_ends_stop_tokens_and_stop_strings_away(engine: BatchingEngine):
    prompt = prompt_of(2, 8)
    end = next(iter(engine._base.end_token_ids))
    ended = answer(engine, Request(prompt, None, SamplingParams(logit_bias={end: 100}, max_tokens=20)))
    assert (ended.token_ids, ended.finish_reason) == ((end,), "stop")
    for settings in ({"logit_bias": {end: 100}}, {"logit_bias": {60: 100}, "stop_token_ids": [60]}):
        one = answer(engine, Request(prompt, None, SamplingParams(min_tokens=6, max_tokens=20, **settings)))
        assert (len(one.token_ids), one.finish_reason) == (7, "stop")
    text = engine.tokenizer.decode([60])
    assert text.strip()
    stopped = answer(engine, request(prompt, stop=text, logit_bias={60: 100}, min_tokens=6, max_tokens=20))
    assert (len(stopped.token_ids), stopped.finish_reason) == (7, "stop")
    assert stopped.text == text * 6


def test_min_tokens_and_the_lengths_it_meets(engine: BatchingEngine):
    with pytest.raises(InvalidRequestError, match=r"min_tokens, 9, is above max_tokens, 8"):
        SamplingParams.of({"min_tokens": 9, "max_tokens": 8})
    with pytest.raises(RequestTooLongError, match="min_tokens=250"):
        engine.generate([Request([5] * 10, None, SamplingParams(min_tokens=250))])


def test_bad_words_are_banned_alone_and_behind_a_space(engine: BatchingEngine):
    tokenizer, prompt = engine.tokenizer, prompt_of(3, 8)
    plain = tokens(engine, request(prompt))
    for token in dict.fromkeys(plain):
        word = tokenizer.decode([token])
        if not word.strip() or tokenizer.encode(word, add_special_tokens=False) != [token]:
            continue
        without = tokens(engine, request(prompt, bad_words=[word]))
        assert token not in without
        spaced = tokenizer.encode(f" {word.lstrip()}", add_special_tokens=False)
        assert len(spaced) != 1 or spaced[0] not in without
        break
    else:
        pytest.fail("no token of the answer is a word")


def test_biases_and_bans_hold_within_a_grammar_and_never_break_it(engine: BatchingEngine):
    prompt, yes_or_no = prompt_of(4, 8), OutputFormat.of(choices=["yes", "no"])
    sampling = SamplingParams(max_tokens=8)
    (first,) = {engine.generate([Request(prompt, None, sampling, yes_or_no)])[0][0].text}
    other = {"yes": "no", "no": "yes"}[first]
    start = engine.tokenizer.encode(first, add_special_tokens=False)[0]
    ids = [token for token in range(320) if first.startswith(engine.tokenizer.decode([token]).strip() or "-")]
    assert start in ids
    for settings in ({"logit_bias": dict.fromkeys(ids, -100.0)}, {"suppress_tokens": ids}):
        one = Request(prompt, None, SamplingParams(max_tokens=8, **settings), yes_or_no)
        assert engine.generate([one])[0][0].text == other
    long = Request(prompt, None, SamplingParams(max_tokens=20, min_tokens=15), yes_or_no)
    assert engine.generate([long])[0][0].text == first, "the format allows nothing but the end"


@pytest.mark.parametrize(
    "wrong",
    [
        {"frequency_penalty": 2.1},
        {"presence_penalty": -2.1},
        {"logit_bias": {5: 101}},
        {"logit_bias": {-5: 1}},
        {"logit_bias": {5: float("nan")}},
        {"logit_bias": dict.fromkeys(range(1025), 1.0)},
        {"min_tokens": -1},
        {"bad_words": [""]},
        {"bad_words": ["x" * 101]},
        {"bad_words": 5},
    ],
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidRequestError, match=next(iter(wrong))):
        SamplingParams.of(wrong)


def test_json_names_tokens_by_texts():
    assert SamplingParams.of({"logit_bias": {"50": 1}}).logit_bias == {50: 1.0}
    assert SamplingParams.of({"logit_bias": None, "bad_words": "word"}).bad_words == ("word",)


def test_a_bias_of_no_token_is_refused(engine: BatchingEngine):
    with pytest.raises(InvalidRequestError, match="320"):
        engine.generate([request([5], logit_bias={320: 1.0})])
