"""The frames of a stream as tokens."""

from __future__ import annotations

from typing import Any

import pytest

from adapterhub.engine.interface import TokenLogprob
from adapterhub.errors import EngineError
from adapterhub.vllm.chunks import ServedToken, tokens_of
from adapterhub.vllm.unavailable import ReplicaUnavailableError


def frame(token_ids: list[int], reason: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "text": "", "token_ids": token_ids, "finish_reason": reason} | fields]}


def test_a_frame_may_have_several_tokens_or_none():
    assert list(tokens_of(frame([4, 5]), None)) == [ServedToken(4), ServedToken(5)]
    assert list(tokens_of(frame([]), None)) == []
    assert list(tokens_of({"choices": [], "usage": {}}, None)) == []


@pytest.mark.parametrize(("reason", "stopped"), [("stop", True), ("length", False)])
def test_the_last_token_says_why_the_answer_ended(reason: str, stopped: bool):
    assert list(tokens_of(frame([4, 5], reason), None)) == [
        ServedToken(4),
        ServedToken(5, None, is_last=True, stopped=stopped),
    ]


def test_alternatives_are_the_most_probable_tokens_alone():
    logprobs = {
        "tokens": ["token_id:9"],
        "token_logprobs": [-4.0],
        "top_logprobs": [{"token_id:9": -4.0, "token_id:1": -0.1, "token_id:2": -2.5}],
    }
    (token,) = tokens_of(frame([9], logprobs=logprobs), 2)
    assert token.logprob == TokenLogprob(9, -4.0, {1: -0.1, 2: -2.5})


ECHOED = {
    "tokens": ["token_id:7", "token_id:9", "token_id:1"],
    "token_logprobs": [None, -4.0, -0.2],
    "top_logprobs": [
        None,
        {"token_id:9": -4.0, "token_id:1": -0.1},
        {"token_id:1": -0.2, "token_id:2": -1.5},
    ],
}


def test_an_echoed_prompt_comes_with_the_first_token():
    first, second = tokens_of(frame([1, 4], logprobs=_with_another(ECHOED)), 2, 1)
    assert first.prompt_logprobs == (None, TokenLogprob(9, -4.0, {1: -0.1}))
    assert first.logprob == TokenLogprob(1, -0.2, {1: -0.2, 2: -1.5})
    assert (second.logprob, second.prompt_logprobs) == (TokenLogprob(4, -0.3, {4: -0.3}), None)


def test_those_of_the_answer_are_left_out_where_only_the_prompt_s_were_requested():
    (token,) = tokens_of(frame([1], logprobs=ECHOED), None, 0)
    assert token.prompt_logprobs == (None, TokenLogprob(9, -4.0, {}))
    assert token.logprob is None


def _with_another(fields: dict[str, Any]) -> dict[str, Any]:
    more = {"tokens": "token_id:4", "token_logprobs": -0.3, "top_logprobs": {"token_id:4": -0.3}}
    return {name: [*values, more[name]] for name, values in fields.items()}


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"choices": [{"index": 0, "text": "a"}]},
        frame([4], logprobs={"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{}]}),
        frame([4], "repetition"),
        frame([], "stop"),
    ],
)
def test_what_is_not_vllm_s_is_told(wrong: dict[str, Any]):
    with pytest.raises(EngineError):
        list(tokens_of(wrong, 0))


def test_a_server_that_ends_gave_the_answer_up():
    with pytest.raises(ReplicaUnavailableError):
        list(tokens_of(frame([], "abort"), None))
