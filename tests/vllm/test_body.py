"""What a server is sent: every setting spelled out, with vLLM's meaning of it."""

from __future__ import annotations

from typing import Any

import pytest

from adapterhub.engine.interface import Request
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.errors import InvalidRequestError
from adapterhub.vllm.body import completion_body, seed_of


def body(*, priority: int = 0, grammar: str | None = None, **sampling: Any) -> dict[str, Any]:
    request = Request([1, 2], None, SamplingParams(**sampling), priority=priority)
    return completion_body(request, max_tokens=256, end_token_ids={7, 3}, grammar=grammar)


def test_what_is_not_set_has_our_defaults_and_not_vllm_s():
    assert body() == {
        "prompt": [1, 2],
        "max_tokens": 256,
        "stream": True,
        "return_token_ids": True,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "stop_token_ids": [3, 7],
        "min_tokens": 0,
        "ignore_eos": False,
        "priority": 0,
    }


@pytest.mark.parametrize(
    ("sampling", "sent"),
    [
        ({"temperature": 0.7, "top_p": 0.9, "min_p": 0.1}, {"temperature": 0.7, "top_p": 0.9, "min_p": 0.1}),
        ({"temperature": 1e-6}, {"temperature": 0.0}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"top_k": 5}, {"top_k": 5}),
        ({"min_tokens": 4, "ignore_eos": True}, {"min_tokens": 4, "ignore_eos": True}),
        ({"logprobs": 0}, {"logprobs": 0, "return_tokens_as_token_ids": True}),
        (
            {"prompt_logprobs": 3, "logprobs": 1},
            {"logprobs": 3, "echo": True, "return_tokens_as_token_ids": True},
        ),
        ({"prompt_logprobs": 0}, {"logprobs": 0, "echo": True, "return_tokens_as_token_ids": True}),
        ({"bad_words": ["no"]}, {"bad_words": ["no"]}),
        ({"logit_bias": {5: 2.0}}, {"logit_bias": {"5": 2.0}}),
        ({"suppress_tokens": [5], "logit_bias": {5: 2.0, 6: 1.0}}, {"logit_bias": {"5": -100.0, "6": 1.0}}),
        ({"bad_words_ids": [(9,)]}, {"logit_bias": {"9": -100.0}}),
        (
            {"frequency_penalty": 0.5, "presence_penalty": -0.5},
            {"frequency_penalty": 0.5, "presence_penalty": -0.5},
        ),
        ({"priority": 3}, {"priority": -3}),
    ],
)
def test_settings(sampling: dict[str, Any], sent: dict[str, Any]):
    assert body(**sampling) == body() | sent


def test_stop_strings_and_the_number_of_completions_stay_here():
    assert body(stop=["a", "b", "c", "d", "e"], n=3, max_tokens=9) == body()


def test_a_ban_of_several_tokens_has_no_counterpart():
    with pytest.raises(InvalidRequestError, match="bad_words_ids"):
        body(bad_words_ids=[(9, 8)])


@pytest.mark.parametrize(
    ("grammar", "sent"),
    [
        ('start: "a"', 'start: "a"'),
        ('{"grammars":[{"lark_grammar":"start: /a/","json_schema":null}]}', "start: /a/"),
        (
            '{"grammars":[{"lark_grammar":null,"json_schema":{"type":"null"}}]}',
            'start: %json {"type": "null"}',
        ),
    ],
)
def test_grammars_are_lark_that_only_llguidance_takes(grammar: str, sent: str):
    assert body(grammar=grammar)["structured_outputs"] == {"grammar": f"%llguidance {{}}\n{sent}"}


def test_each_completion_has_a_seed_of_its_own():
    assert [seed_of(SamplingParams(seed=2**63 - 1), index) for index in range(2)] == [
        {"seed": 2**63 - 1},
        {"seed": 0},
    ]
    assert seed_of(SamplingParams(), 1) == {}
