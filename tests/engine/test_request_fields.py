"""Every field of a request is checked before it is queued: what is not valid is our error, and reaches no step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapterhub import SamplingParams
from adapterhub.base.loading import load_base
from adapterhub.config import MAX_PRIORITY, EngineLimits
from adapterhub.engine import BatchingEngine, OutputFormat
from adapterhub.engine.decoding.sampler import Logits, Sampler
from adapterhub.engine.interface import Request
from adapterhub.errors import AdapterHubError, InvalidRequestError, RequestTooLongError
from tests.engine.maker import NOTHING, answer, counts, in_threads, prompt_of, request, tokens
from tests.tiny import VOCABULARY

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 2**31, 2**63, -1, math.nan, math.inf, -math.inf, 5e-324, 1e-50]),
    st.floats(),
    st.text(st.characters(), max_size=3),
    st.sampled_from(["\udc80", b"x", object(), {}, [], [None], [-1], [10**30], [10**6], [[]], ["\udc80"]]),
)


@pytest.fixture(scope="module")
def engine(tiny_base: Path) -> Iterator[BatchingEngine]:
    engine = BatchingEngine(
        load_base(tiny_base, quantization=None, device="cpu"), EngineLimits(kv_cache_mib=16)
    )
    yield engine
    engine.close()


@given(field=st.sampled_from(sorted(SamplingParams.model_fields)), value=VALUES, other=VALUES)
def test_any_value_of_a_sampling_parameter_is_served_or_refused(
    engine: BatchingEngine, field: str, value: Any, other: Any
):
    asked = {"max_tokens": 2, "temperature": 1.0, "seed": 1, "n": 1, field: value, "min_p": other}
    try:
        one = Request([5, 6], sampling=SamplingParams.of(asked))
    except InvalidRequestError:
        return
    if one.sampling.n > 4 or (one.sampling.max_tokens or 9) > 4:
        return  # right, but it takes long
    assert all(1 <= len(each.token_ids) <= 4 for each in engine.generate([one])[0])
    assert counts(engine) == NOTHING


@given(field=st.sampled_from(["prompt", "adapter", "sampling", "output_format", "priority"]), value=VALUES)
def test_any_value_of_a_field_is_served_or_refused(engine: BatchingEngine, field: str, value: Any):
    try:
        completions = engine.generate(
            [Request(**{"prompt": [5], "sampling": SamplingParams(max_tokens=1), field: value})]
        )
    except (InvalidRequestError, RequestTooLongError):
        assert (
            field != "priority"
            or not isinstance(value, int)
            or not abs(value) <= MAX_PRIORITY
            or value in (0, 1)
        )
    else:
        assert len(completions) == 1
    assert counts(engine) == NOTHING


@pytest.mark.parametrize("priority", [10**400, -(10**400), MAX_PRIORITY + 1, 0.5, math.nan, True, "1", None])
def test_a_priority_is_a_whole_number_within_bounds(priority: Any):
    with pytest.raises(InvalidRequestError, match="priority is a whole number"):
        Request([5], priority=priority)


def test_priorities_of_any_size_wait_together(engine: BatchingEngine):
    """The bounds themselves, too, while others wait: nobody's answer ends."""
    wanted = tokens(engine, request(prompt_of(0, 5)))
    got: list[list[int]] = []
    sizes = [-MAX_PRIORITY, -1, 0, 1, MAX_PRIORITY] * 16
    ask = lambda size: got.append(tokens(engine, request(prompt_of(0, 5), priority=size)))  # noqa: E731
    in_threads([lambda size=size: ask(size) for size in sizes])  # type: ignore[misc]
    assert got == [wanted] * len(sizes)


@pytest.mark.parametrize("token_id", [VOCABULARY, 10**6, 10**30])
def test_token_ids_beyond_the_vocabulary_are_refused(engine: BatchingEngine, token_id: int):
    for one in (request([5, token_id]), request([5], stop_token_ids=[token_id])):
        with pytest.raises(InvalidRequestError, match="vocabulary has 320 tokens"):
            engine.generate([one])


def test_a_negative_stop_token_is_refused_with_an_output_format_as_without():
    """As an index it would mean the last tokens of the vocabulary, and end a choice in the middle."""
    with pytest.raises(InvalidRequestError, match="stop_token_ids"):
        SamplingParams.of({"stop_token_ids": [-5]})


def test_changed_copies_of_sampling_parameters_are_checked_again():
    for unchecked in (
        SamplingParams().model_copy(update={"top_p": "x"}),
        SamplingParams.model_construct(temperature=math.nan),
    ):
        with pytest.raises(InvalidRequestError, match="sampling parameter is not valid"):
            Request([5], sampling=unchecked)


@pytest.mark.parametrize(
    "extreme",
    [
        {"top_p": 1e-50},
        {"top_p": 5e-324},
        {"top_p": 1e-50, "temperature": 100.0},
        {"min_p": 1.0},
        {"top_k": 1},
        {"repetition_penalty": 10.0, "temperature": 1e-5, "top_p": 1e-50},
        {"repetition_penalty": 0.01, "temperature": 1e-5, "top_p": 1e-50},
    ],
)
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_extreme_sampling_takes_the_most_probable_token(extreme: dict[str, Any], size: float):
    """Each leaves one token over, which of float32's range must not become none."""
    logits = torch.linspace(-size, size, VOCABULARY)[None]
    (row,) = Logits.of(logits)
    params = SamplingParams.of({"temperature": 1.0, "seed": 0}, extreme)
    allowed = torch.ones(VOCABULARY, dtype=torch.bool)
    for mask in (None, allowed):
        token, _ = Sampler(params, 0, torch.device("cpu")).draw(row, mask)
        assert token == VOCABULARY - 1


@pytest.mark.parametrize("wrong", [1e-50, 0, math.nan, math.inf, 1e50])
def test_a_repetition_penalty_that_overflows_is_refused(wrong: float):
    with pytest.raises(InvalidRequestError, match="repetition_penalty"):
        SamplingParams.of({"repetition_penalty": wrong})


def test_more_log_probabilities_than_tokens_are_all_of_them():
    (row,) = Logits.of(torch.randn(1, 8))
    _, logprob = Sampler(SamplingParams(logprobs=20), 0, torch.device("cpu")).draw(row)
    assert logprob is not None
    assert math.isclose(sum(map(math.exp, logprob.top.values())), 1, rel_tol=1e-5)


# Output formats


def recursive() -> dict[str, Any]:
    schema: dict[str, Any] = {}
    schema["items"] = schema
    return schema


def deep() -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(3000):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    "output_format",
    [
        {"schema": {"type": "\udc80"}},
        {"schema": {"const": "\udc80"}},
        {"schema": {"properties": {"\udc80": {}}}},
        {"schema": {"maxLength": 10**400}},
        {"schema": {"type": "integer", "minimum": 10**400}},
        {"schema": {"multipleOf": math.nan}},
        {"schema": 5},
        {"schema": "\udc80"},
        {"schema": recursive()},
        {"schema": deep()},
        {"regex": "\udc80"},
        {"regex": 5},
        {"regex": "(" * 30_000 + "a" + ")" * 30_000},
        {"grammar": "\udc80"},
        {"grammar": "start: " + "(" * 30_000 + '"a"' + ")" * 30_000},
        {"grammar": b"start: a"},
        {"choices": ["\udc80"]},
        {"choices": 5},
        {"choices": {"a": 1}},
    ],
    ids=lambda kind: next(iter(kind)),
)
def test_an_output_format_that_is_none_is_refused(engine: BatchingEngine, output_format: dict[str, Any]):
    with pytest.raises(InvalidRequestError) as refused:
        engine.generate([Request([5], output_format=OutputFormat.of(**output_format))])
    str(refused.value).encode()


def test_a_panic_while_compiling_is_our_error(engine: BatchingEngine, monkeypatch: pytest.MonkeyPatch):
    """Rust code that panics raises an exception that is no `Exception`."""

    class PanicException(BaseException):
        pass

    def panics(*_: object, **__: object) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr("adapterhub.engine.decoding.grammar_compiler._to_llguidance", panics)
    with pytest.raises(AdapterHubError, match="index out of bounds"):
        answer(engine, Request([5], output_format=OutputFormat.of(regex="a panic")))
