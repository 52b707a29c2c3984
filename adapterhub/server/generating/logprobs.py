"""Log-probabilities in the forms of chat and text completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from adapterhub.engine.interface import TokenLogprob
from adapterhub.requests.generation import Generation
from adapterhub.server.generating.token_texts import TokenTexts, text_bytes

_LEAST = -9999.0
"""Stands for a probability of 0, whose logarithm JSON cannot hold; vLLM's value."""


def chat_logprobs(logprobs: Sequence[TokenLogprob] | None, texts: TokenTexts) -> dict[str, Any] | None:
    """The form of Chat Completions; None if none were asked for.

    Args:
        logprobs: Of tokens that follow each other.
        texts: Of tokens.
    """
    if logprobs is None:
        return None
    content = [
        {
            **_token(each.token_id, each.logprob, texts),
            "top_logprobs": [_token(token_id, logprob, texts) for token_id, logprob in _ranked(each)],
        }
        for each in logprobs
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(
    token_ids: Sequence[int],
    logprobs: Sequence[TokenLogprob | None] | None,
    texts: TokenTexts,
    *,
    top: int | None,
    offset: int = 0,
) -> dict[str, Any] | None:
    """The form of Completions; None if none were asked for.

    Args:
        token_ids: Tokens that follow each other.
        logprobs: Theirs; None for the first of a prompt.
        texts: Of tokens.
        top: How many of the most probable tokens were asked for; None for no log-probabilities.
        offset: Characters of the choice's text before the first of them.
    """
    if logprobs is None or top is None:
        return None
    tokens = [texts[token_id] for token_id in token_ids]
    return {
        "tokens": tokens,
        "token_logprobs": [None if each is None else _finite(each.logprob) for each in logprobs],
        "top_logprobs": [
            None
            if each is None
            else {texts[token_id]: _finite(logprob) for token_id, logprob in _ranked(each)[:top]}
            for each in logprobs
        ],
        "text_offset": list(accumulate(map(len, tokens), initial=offset))[:-1],
    }


def num_characters(logprobs: Mapping[str, Any] | None) -> int:
    """The length of the tokens' texts in what `completion_logprobs` gave."""
    return sum(map(len, logprobs["tokens"])) if logprobs else 0


def joined(first: dict[str, Any] | None, second: dict[str, Any] | None) -> dict[str, Any] | None:
    """What `completion_logprobs` gave for tokens and those that follow them, as one."""
    if first is None or second is None:
        return first or second
    return {name: [*values, *second[name]] for name, values in first.items()}


def prompt_logprobs_of(
    generation: Generation, top: int | None, texts: TokenTexts
) -> dict[str, list[dict[str, Any] | None]]:
    """vLLM's `prompt_logprobs`, one object for each token: token id -> its log-probability; empty if not asked for.

    Args:
        generation: The answer.
        top: How many of the most probable tokens were asked for.
        texts: Of tokens.
    """
    if top is None or generation.prompt_logprobs is None:
        return {}
    return {
        "prompt_logprobs": [
            _by_token_id(each, top, texts) if each else None for each in generation.prompt_logprobs
        ]
    }


def _by_token_id(own: TokenLogprob, top: int, texts: TokenTexts) -> dict[str, Any]:
    found = {own.token_id: (own.logprob, own.rank)}
    for rank, (token_id, logprob) in enumerate(_ranked(own)[:top], start=1):
        found.setdefault(token_id, (logprob, rank))
    return {
        str(token_id): {"logprob": _finite(logprob), "rank": rank, "decoded_token": texts[token_id]}
        for token_id, (logprob, rank) in found.items()
    }


def _token(token_id: int, logprob: float, texts: TokenTexts) -> dict[str, Any]:
    text = texts[token_id]
    return {"token": text, "logprob": _finite(logprob), "bytes": text_bytes(text)}


def _ranked(logprob: TokenLogprob) -> list[tuple[int, float]]:
    return sorted(logprob.top.items(), key=lambda item: -item[1])


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
