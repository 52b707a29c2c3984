"""What the hub asks of an engine: token ids and an adapter in, pieces of text out.

`EchoEngine` (no torch) and `BatchingEngine` implement it; a hub neither knows nor cares which one it has.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.engine.output_format import OutputFormat
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.engine.stats import EngineStats
from adapterhub.engine.tokenizer import Tokenizer
from adapterhub.errors import InvalidRequestError, RequestTooLongError
from adapterhub.lora.request import LoraRequest as LoraRequest

FinishReason = Literal["stop", "length"]
DEFAULT_MAX_TOKENS = 256


@dataclass(frozen=True)
class Request:
    """One prompt to be answered.

    Attributes:
        prompt: Token ids.
        adapter: Whose answer is wanted; None means the bare base.
        sampling: How to draw it.
        output_format: The form that it must have; None for free text.
        priority: Where requests have to wait, higher ones start first.
    """

    prompt: Sequence[int]
    adapter: LoraRequest | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    output_format: OutputFormat | None = None
    priority: int = 0


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log-probability under the base and adapter, before sampling settings change it.

    Attributes:
        token_id: The token.
        logprob: Its natural log-probability.
        top: The most probable tokens at this place: token id -> log-probability.
    """

    token_id: int
    logprob: float
    top: Mapping[int, float]


@dataclass(frozen=True)
class TokenOutput:
    """What one step adds to an answer.

    Attributes:
        text: New text; empty while a character or a possible stop string is incomplete.
        token_id: The token of this step.
        logprob: Its log-probability, if asked for.
        finish_reason: Set on the last piece: `"stop"` or `"length"`.
    """

    text: str
    token_id: int
    logprob: TokenLogprob | None = None
    finish_reason: FinishReason | None = None


@dataclass(frozen=True)
class Completion:
    """One whole answer.

    Attributes:
        text: The answer without stop strings and end tokens.
        token_ids: Every token that was generated, the end token too.
        finish_reason: `"stop"` (end token or stop string) or `"length"`.
        logprobs: One entry a token, if asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None = None

    @classmethod
    def of(cls, pieces: Sequence[TokenOutput]) -> Completion:
        """Joins the pieces of one answer, the last of which tells why it ended."""
        logprobs = tuple(piece.logprob for piece in pieces if piece.logprob)
        return cls(
            text="".join(piece.text for piece in pieces),
            token_ids=tuple(piece.token_id for piece in pieces),
            finish_reason=pieces[-1].finish_reason or "length",
            logprobs=logprobs or None,
        )


class Engine(Protocol):
    """Generates answers from one base and any of its adapters.

    Attributes:
        base_name: The name of the base.
        fingerprint: What the base is; None if the engine has no real one.
        tokenizer: LeaderFollower text into the token ids of a `Request`.
        context_length: Most tokens of a prompt and its answer together.
    """

    @property
    def base_name(self) -> str: ...

    @property
    def fingerprint(self) -> BaseFingerprint | None: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def context_length(self) -> int: ...

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Answers every request; each gets `sampling.n` completions.

        Raises:
            AdapterIncompatibleError: An adapter does not fit the base.
            InvalidRequestError: A prompt has no tokens; nothing was generated.
            RequestTooLongError: A request does not fit the context; nothing was generated.
        """
        ...

    def stream(self, request: Request) -> Iterator[TokenOutput]:
        """Answers one request piece by piece; closing the iterator cancels it. `sampling.n` is taken as 1."""
        ...

    async def agenerate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """As `generate`, without blocking the event loop; cancelling the task cancels the answers."""
        ...

    def astream(self, request: Request) -> AsyncIterator[TokenOutput]:
        """As `stream`, without blocking the event loop; closing the iterator cancels the answer."""
        ...

    def pin(self, adapter: LoraRequest, pinned: bool = True) -> None:
        """Keeps an adapter where it is quickest to use once it is there, or no longer.

        Raises:
            CapacityError: Too many are pinned.
        """
        ...

    def preload(self, adapter: LoraRequest) -> None:
        """Loads an adapter before the first request for it.

        Raises:
            AdapterIncompatibleError: It does not fit the base.
        """
        ...

    def unload(self, adapter: LoraRequest) -> None:
        """Forgets an adapter as soon as no running answer needs it; a later request loads it again."""
        ...

    def stats(self) -> EngineStats:
        """What the engine does and holds now."""
        ...

    def close(self) -> None:
        """Ends running answers with an error and frees what the engine holds; calling it twice is fine."""
        ...


def answer_budget(request: Request, context_length: int) -> int:
    """How many tokens an answer may have.

    Raises:
        InvalidRequestError: The prompt has no token at all.
        RequestTooLongError: The prompt leaves no room, or less than the request asks for.
    """
    if not request.prompt:
        raise InvalidRequestError("The prompt is empty: the base's tokenizer makes no token of it.")
    room = context_length - len(request.prompt)
    wanted = request.sampling.max_tokens
    if room < (wanted or 1):
        asked = f" and max_tokens={wanted}" if wanted else ""
        raise RequestTooLongError(
            f"A prompt of {len(request.prompt)} tokens{asked} does not fit the context of {context_length} tokens.",
            hint="Shorten the prompt or lower max_tokens.",
        )
    return wanted or min(DEFAULT_MAX_TOKENS, room)
