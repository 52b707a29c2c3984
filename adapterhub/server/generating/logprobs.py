"""Log-probabilities in the forms of chat and text completions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from adapterhub.engine.interface import TokenLogprob
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
    logprobs: Sequence[TokenLogprob] | None, texts: TokenTexts, offset: int = 0
) -> dict[str, Any] | None:
    """The form of Completions; None if none were asked for.

    Args:
        logprobs: Of tokens that follow each other.
        texts: Of tokens.
        offset: Characters of the choice's text before the first of them.
    """
    if logprobs is None:
        return None
    tokens = [texts[each.token_id] for each in logprobs]
    return {
        "tokens": tokens,
        "token_logprobs": [_finite(each.logprob) for each in logprobs],
        "top_logprobs": [
            {texts[token_id]: _finite(logprob) for token_id, logprob in _ranked(each)} for each in logprobs
        ],
        "text_offset": list(accumulate(map(len, tokens), initial=offset))[:-1],
    }


def _token(token_id: int, logprob: float, texts: TokenTexts) -> dict[str, Any]:
    text = texts[token_id]
    return {"token": text, "logprob": _finite(logprob), "bytes": text_bytes(text)}


def _ranked(logprob: TokenLogprob) -> list[tuple[int, float]]:
    return sorted(logprob.top.items(), key=lambda item: -item[1])


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
