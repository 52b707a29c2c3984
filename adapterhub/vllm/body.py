"""A request as the body of vLLM's `/v1/completions`, with every setting spelled out: vLLM's defaults are others.

The text is made here, from token ids, so stop strings stay here too: there may be more than vLLM's four, and an answer
is the same, character for character, as the in-process engine's.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from adapterhub.engine.interface import Request
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.errors import InvalidRequestError

_NEVER = -100.0  # the lowest bias that vLLM takes
# xgrammar, which vLLM tries first, has no such line, so the grammar goes to llguidance, whose it is.
_LLGUIDANCE = "%llguidance {}\n"


def completion_body(
    request: Request, *, max_tokens: int, end_token_ids: Collection[int], grammar: str | None
) -> dict[str, Any]:
    """The body of each of a request's `n` completions, but for the `seed`, and `model`, which depends on the server.

    Args:
        request: The request.
        max_tokens: Maximum number of tokens.
        end_token_ids: Tokens that end the answer.
        grammar: llguidance's grammar of the output format; None for free text.

    Raises:
        InvalidRequestError: vLLM has no counterpart of a sampling parameter.
    """
    sampling = request.sampling
    body: dict[str, Any] = {
        "prompt": list(request.prompt),
        "max_tokens": max_tokens,
        "stream": True,
        "return_token_ids": True,
        "temperature": 0.0 if sampling.greedy else sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": max(sampling.top_k, 0),
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
        "stop_token_ids": sorted(end_token_ids),
        "min_tokens": sampling.min_tokens,
        "ignore_eos": sampling.ignore_eos,
        "priority": -request.priority,  # vLLM's lower ones start first
    }
    body |= _logprobs(sampling)
    if sampling.bad_words:
        body["bad_words"] = list(sampling.bad_words)
    if bias := _logit_bias(sampling):
        body["logit_bias"] = {str(token): value for token, value in bias.items()}
    if grammar is not None:
        body["structured_outputs"] = {"grammar": _LLGUIDANCE + _lark(grammar)}
    return body


def seed_of(sampling: SamplingParams, index: int) -> dict[str, int]:
    """The seed of one of the `n` completions, each of which has its own, as in the other engines."""
    return {} if sampling.seed is None else {"seed": (sampling.seed + index) % 2**63}


def _logprobs(sampling: SamplingParams) -> dict[str, Any]:
    counts = [count for count in (sampling.logprobs, sampling.prompt_logprobs) if count is not None]
    if not counts:
        return {}
    # vLLM streams no `prompt_logprobs`, but those of a prompt that it echoes.
    echo = {} if sampling.prompt_logprobs is None else {"echo": True}
    return {"logprobs": max(counts), "return_tokens_as_token_ids": True, **echo}


def _logit_bias(sampling: SamplingParams) -> dict[int, float]:
    """The biases, with those that keep tokens from being generated."""
    sequences = [ids for ids in sampling.bad_words_ids if len(ids) > 1]
    if sequences:
        raise InvalidRequestError(
            "A vLLM server takes no bad_words_ids of more than one token.",
            hint="Give the texts as bad_words.",
        )
    never = [*sampling.suppress_tokens, *(ids[0] for ids in sampling.bad_words_ids)]
    return {**sampling.logit_bias, **dict.fromkeys(never, _NEVER)}


def _lark(grammar: str) -> str:
    """llguidance's own format of a grammar, which vLLM does not take, as Lark."""
    if not grammar.startswith("{"):
        return grammar
    (one,) = json.loads(grammar)["grammars"]
    return one["lark_grammar"] or f"start: %json {json.dumps(one['json_schema'])}"
