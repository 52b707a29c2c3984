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
