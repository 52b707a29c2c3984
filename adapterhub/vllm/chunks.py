"""The frames of a streamed completion, as tokens with their log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from adapterhub.engine.interface import TokenLogprob
from adapterhub.errors import EngineError
from adapterhub.vllm.unavailable import ReplicaUnavailableError

_TOKEN_ID = "token_id:"


@dataclass(frozen=True)
class ServedToken:
    """A token of an answer.

    Attributes:
        token_id: The token.
        logprob: Its log-probability, if requested.
        is_last: Whether the server ended the answer with it.
        stopped: Whether it ended it otherwise than by the maximum number of tokens.
    """

    token_id: int
    logprob: TokenLogprob | None = None
    is_last: bool = False
    stopped: bool = False


def tokens_of(frame: Mapping[str, Any], logprobs: int | None) -> Iterator[ServedToken]:
    """The tokens in one frame of a completion that was asked for with `return_token_ids`; often one, none at the end.

    Args:
        frame: As `VLLMClient.complete` yields it.
        logprobs: How many of the most probable tokens were requested with each; None for no log-probabilities.

    Raises:
        EngineError: The frame is not one of vLLM's, or vLLM gave up the answer.
        ReplicaUnavailableError: The server is going down.
    """
    try:
        for choice in frame["choices"]:
            yield from _tokens(choice, logprobs)
    except (LookupError, TypeError, ValueError) as error:
        raise EngineError(
            "The server streams other fields than vLLM does.", hint="Token ids need vLLM 0.11 or later."
        ) from error


def _tokens(choice: Mapping[str, Any], logprobs: int | None) -> Iterator[ServedToken]:
    reason, token_ids = choice.get("finish_reason"), choice["token_ids"]
    if reason == "abort":
        raise ReplicaUnavailableError("The server gave up the answer: it ends.", hint="Ask again.")
    if reason not in (None, "stop", "length"):
        raise EngineError(f"vLLM ended the answer by {str(reason)[:40]!r}.", hint="Ask again.")
    if (
        reason and not token_ids
    ):  # vLLM's check_stop looks at the last token, whose frame says why it was the last
        raise ValueError("an end without a token")
    found = [None] * len(token_ids) if logprobs is None else _logprobs(choice["logprobs"], logprobs)
    for place, (token_id, logprob) in enumerate(zip(token_ids, found, strict=True), start=1):
        is_last = bool(reason) and place == len(token_ids)
        yield ServedToken(int(token_id), logprob, is_last, is_last and reason == "stop")


def _logprobs(fields: Mapping[str, Any], count: int) -> list[TokenLogprob | None]:
    columns = (fields["tokens"], fields["token_logprobs"], fields["top_logprobs"])
    return [
        TokenLogprob(_token_id(token), float(logprob), _most_probable(top, count))
        for token, logprob, top in zip(*columns, strict=True)
    ]


def _most_probable(top: Mapping[str, float], count: int) -> dict[int, float]:
    """The most probable tokens alone: vLLM puts the token itself among them, wherever it ranks."""
    ranked = sorted(top.items(), key=lambda item: -item[1])[:count]
    return {_token_id(token): float(logprob) for token, logprob in ranked}


def _token_id(token: str) -> int:
    if not token.startswith(_TOKEN_ID):
        raise ValueError(token)
    return int(token.removeprefix(_TOKEN_ID))
