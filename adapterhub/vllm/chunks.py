"""The frames of a streamed completion, as tokens with their log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from adapterhub.engine.interface import PromptLogprobs, TokenLogprob
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
        prompt_logprobs: Of an answer's first token: those of the prompt, if requested.
    """

    token_id: int
    logprob: TokenLogprob | None = None
    is_last: bool = False
    stopped: bool = False
    prompt_logprobs: PromptLogprobs | None = None


def tokens_of(
    frame: Mapping[str, Any], logprobs: int | None, prompt_logprobs: int | None = None
) -> Iterator[ServedToken]:
    """The tokens in one frame of a completion that was asked for with `return_token_ids`; often one, none at the end.

    Args:
        frame: As `VLLMClient.complete` yields it.
        logprobs: How many of the most probable tokens were requested with each; None for no log-probabilities.
        prompt_logprobs: The same of the prompt's tokens.

    Raises:
        EngineError: The frame is not one of vLLM's, or vLLM gave up the answer.
        ReplicaUnavailableError: The server is going down.
    """
    try:
        for choice in frame["choices"]:
            yield from _tokens(choice, logprobs, prompt_logprobs)
    except (LookupError, TypeError, ValueError) as error:
        raise EngineError(
            "The server streams other fields than vLLM does.", hint="Token ids need vLLM 0.11 or later."
        ) from error


def _tokens(
    choice: Mapping[str, Any], logprobs: int | None, prompt_logprobs: int | None
) -> Iterator[ServedToken]:
    reason, token_ids = choice.get("finish_reason"), choice["token_ids"]
    if reason == "abort":
        raise ReplicaUnavailableError("The server gave up the answer: it ends.", hint="Ask again.")
    if reason not in (None, "stop", "length"):
        raise EngineError(f"vLLM ended the answer by {str(reason)[:40]!r}.", hint="Ask again.")
    if reason and not token_ids:  # the last token's frame is the one that says why it was the last
        raise ValueError("an end without a token")
    entries = [] if logprobs is None and prompt_logprobs is None else _entries(choice["logprobs"])
    of_prompt = len(entries) - len(token_ids) if prompt_logprobs is not None and token_ids else 0
    found = [_with_top(one, logprobs) for one in entries[of_prompt:]] or [None] * len(token_ids)
    told = tuple(_with_top(one, prompt_logprobs) for one in entries[:of_prompt]) or None
    for place, (token_id, logprob) in enumerate(zip(token_ids, found, strict=True), start=1):
        is_last = bool(reason) and place == len(token_ids)
        yield ServedToken(int(token_id), logprob, is_last, is_last and reason == "stop", told)
        told = None


def _entries(fields: Mapping[str, Any]) -> list[TokenLogprob | None]:
    """What a frame says of tokens; None for the first of a prompt."""
    columns = (fields["tokens"], fields["token_logprobs"], fields["top_logprobs"])
    return [
        None if logprob is None else TokenLogprob(_token_id(token), float(logprob), _by_token_id(top))
        for token, logprob, top in zip(*columns, strict=True)
    ]


def _with_top(entry: TokenLogprob | None, count: int | None) -> TokenLogprob | None:
    """An entry with its most probable tokens alone: vLLM puts the token itself among them, wherever it ranks."""
    if entry is None or count is None:
        return None
    ranked = sorted(entry.top.items(), key=lambda item: -item[1])
    return replace(entry, top=dict(ranked[:count]))


def _by_token_id(top: Mapping[str, float]) -> dict[int, float]:
    return {_token_id(token): float(logprob) for token, logprob in top.items()}


def _token_id(token: str) -> int:
    if not token.startswith(_TOKEN_ID):
        raise ValueError(token)
    return int(token.removeprefix(_TOKEN_ID))
