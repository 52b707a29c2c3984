"""The interface of an engine: token ids and an adapter in, token outputs out.

`EchoEngine` (no torch) and `BatchingEngine` implement it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.config import MAX_PRIORITY
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
    """One prompt to be completed. Its fields are checked here, so that none of them can fail a step of the engine.

    Attributes:
        prompt: Token ids, from 0.
        adapter: The adapter; None for the base without one.
        sampling: Sampling parameters.
        output_format: What the completion must match; None for free text.
        priority: Waiting requests of higher priority start first; from `-MAX_PRIORITY` to `MAX_PRIORITY`.

    Raises:
        InvalidRequestError: A field has another type, or a value out of range.
    """

    prompt: Sequence[int]
    adapter: LoraRequest | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    output_format: OutputFormat | None = None
    priority: int = 0

    def __post_init__(self) -> None:
        check_priority(self.priority)
        if not isinstance(self.prompt, Sequence) or not set(map(type, self.prompt)) <= {int}:
            raise InvalidRequestError("A prompt for the engine is a list of token ids, whole numbers.")
        if self.prompt and min(self.prompt) < 0:
            raise InvalidRequestError("A token id of the prompt is negative.")
        for name, kind in (("adapter", LoraRequest), ("output_format", OutputFormat)):
            if not isinstance(getattr(self, name), kind | None):
                raise InvalidRequestError(f"{name}= takes a {kind.__name__} or None.")
        if not isinstance(self.sampling, SamplingParams):
            raise InvalidRequestError("sampling= takes a SamplingParams.")
        # Checked again: `model_copy(update=...)` and `model_construct` do not.
        object.__setattr__(self, "sampling", SamplingParams.of(dict(self.sampling)))


def check_priority(priority: object) -> None:
    """Returns if this may be the priority of a request.

    Raises:
        InvalidRequestError: It is no whole number, or out of range.
    """
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise InvalidRequestError(f"A priority is a whole number, not of type {type(priority).__name__}.")
    if abs(priority) > MAX_PRIORITY:
        raise InvalidRequestError(f"A priority is a whole number from {-MAX_PRIORITY} to {MAX_PRIORITY}.")


@dataclass(frozen=True)
class TokenLogprob:
    """The log-probability of a token under the base and adapter, before sampling parameters change it.

    Attributes:
        token_id: The token.
        logprob: Its natural log-probability.
        top: The most probable tokens at its position: token id -> log-probability.
        rank: How many tokens are as probable or more, itself among them; None where that was not counted, as of the
            tokens of an answer.
    """

    token_id: int
    logprob: float
    top: Mapping[int, float]
    rank: int | None = None


PromptLogprobs = tuple[TokenLogprob | None, ...]
"""One entry for each token of a prompt; None for the first, which nothing precedes."""


@dataclass(frozen=True)
class Timings:
    """How long the parts of one completion took.

    Attributes:
        queue_seconds: From when it was queued until it took part in steps.
        prefill_seconds: From then until its first token.
        decode_seconds: From its first token to its last.
    """

    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float

    @property
    def time_to_first_token(self) -> float:
        """Seconds from when it was queued to its first token."""
        return self.queue_seconds + self.prefill_seconds

    @property
    def total_seconds(self) -> float:
        """Seconds from when it was queued to its last token."""
        return self.time_to_first_token + self.decode_seconds


@dataclass(frozen=True)
class TokenOutput:
    """What one token adds to a completion.

    Attributes:
        text: New text; empty while a character or a possible stop string is incomplete.
        token_id: The token.
        logprob: Its log-probability, if requested.
        finish_reason: Set on the last output: `"stop"` or `"length"`.
        index: Which of the request's `n` completions it belongs to.
        timings: Set on the last output, if the engine takes them.
        num_cached_tokens: Set on the last output: tokens of the prompt that were found in a prefix cache.
        prompt_logprobs: Set on the first output, if requested.
    """

    text: str
    token_id: int
    logprob: TokenLogprob | None = None
    finish_reason: FinishReason | None = None
    index: int = 0
    timings: Timings | None = field(default=None, compare=False)
    num_cached_tokens: int = field(default=0, compare=False)
    prompt_logprobs: PromptLogprobs | None = None


@dataclass(frozen=True)
class Completion:
    """One whole completion.

    Attributes:
        text: The text without stop strings and end tokens.
        token_ids: All generated tokens, with the end token.
        finish_reason: `"stop"` (end token or stop string) or `"length"`.
        logprobs: One entry for each token, if requested.
        timings: How long it took, if the engine takes the time; no part of what two completions are compared by.
        num_cached_tokens: Tokens of the prompt that were found in a prefix cache; no part of it either.
        prompt_logprobs: Those of the prompt's tokens, if requested; all `n` completions of a request have the same.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None = None
    timings: Timings | None = field(default=None, compare=False, repr=False)
    num_cached_tokens: int = field(default=0, compare=False, repr=False)
    prompt_logprobs: PromptLogprobs | None = field(default=None, repr=False)

    @classmethod
    def of(cls, outputs: Sequence[TokenOutput]) -> Completion:
        """Joins all token outputs of one completion."""
        logprobs = tuple(output.logprob for output in outputs if output.logprob)
        return cls(
            text="".join(output.text for output in outputs),
            token_ids=tuple(output.token_id for output in outputs),
            finish_reason=outputs[-1].finish_reason or "length",
            logprobs=logprobs or None,
            timings=outputs[-1].timings,
            num_cached_tokens=outputs[-1].num_cached_tokens,
            prompt_logprobs=outputs[0].prompt_logprobs,
        )


class TokenStream(Protocol):
    """The outputs of one request's `n` completions, side by side; an asynchronous iterator. One task uses it."""

    async def start(self) -> None:
        """Checks the request and queues it, unless that was done; returns before there is an output.

        Raises:
            AdapterHubError: As `Engine.generate`, but for what depends on the adapter's files.
        """
        ...

    async def get(self) -> list[TokenOutput]:
        """Waits for outputs and returns all that have come, in the order of each completion; none at the end.

        Raises:
            AdapterHubError: A completion failed; what it had before has been returned.
        """
        ...

    def __aiter__(self) -> AsyncIterator[TokenOutput]: ...

    async def __anext__(self) -> TokenOutput: ...

    async def aclose(self) -> None:
        """Aborts what has not finished: it runs in no further step."""
        ...


class Engine(Protocol):
    """Completes prompts with one base and any of its adapters. Any thread may call any method.

    Attributes:
        base_name: The name of the base.
        fingerprint: The identity of the base; None if the engine has no real one.
        tokenizer: Makes the token ids of a `Request`.
        context_length: Maximum number of tokens of a prompt and its completion together.
        default_sampling_params: Fields of `SamplingParams` for requests and cards that do not set them; the engine
            itself takes a `Request` as it is.
    """

    @property
    def base_name(self) -> str: ...

    @property
    def fingerprint(self) -> BaseFingerprint | None: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def context_length(self) -> int: ...

    @property
    def default_sampling_params(self) -> Mapping[str, Any]: ...

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Completes all requests; each gets `sampling.n` completions.

        Raises:
            AdapterIncompatibleError: An adapter does not fit the base.
            CapacityError: Too many requests wait; nothing was generated.
            EngineClosedError: The engine is closed.
            InvalidRequestError: A prompt is empty, or an output format cannot be enforced; nothing was generated.
            RequestTooLongError: A request does not fit the context; nothing was generated.
        """
        ...

    def stream(self, request: Request) -> Generator[TokenOutput]:
        """Completes one request, token by token; `sampling.n` is taken as 1.

        The request is checked now and queued at the first `next`. Closing the generator aborts it.

        Raises:
            AdapterHubError: As `generate`; what depends on the adapter or the queue at the first `next`.
        """
        ...

    async def agenerate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """As `generate`, without blocking the event loop; cancelling the task aborts the requests."""
        ...

    def astream(self, request: Request) -> TokenStream:
        """Completes one request, token by token, `sampling.n` times side by side, without blocking the event loop.

        The request is checked and queued by `start`, or at the first `anext`.
        """
        ...

    def pin(self, adapter: LoraRequest, pinned: bool = True) -> None:
        """Excludes an adapter from eviction once it is in a LoRA slot, or includes it again.

        Raises:
            CapacityError: Every slot would be pinned.
        """
        ...

    def preload(self, adapter: LoraRequest) -> None:
        """Loads an adapter ahead of requests: into host memory, and into a LoRA slot if one is free; blocks until then.

        Raises:
            AdapterHubError: It cannot be loaded, or does not fit the base.
            EngineClosedError: The engine is closed.
        """
        ...

    def unload(self, adapter: LoraRequest) -> None:
        """Removes an adapter from slots and caches once no running sequence uses it; a later request loads it again."""
        ...

    def stats(self) -> EngineStats:
        """A snapshot of what the engine runs and holds."""
        ...

    def close(self) -> None:
        """Ends all sequences with `EngineClosedError` and frees what the engine holds; may be called twice."""
        ...


def max_completion_tokens(request: Request, context_length: int) -> int:
    """The maximum number of tokens of a completion.

    Args:
        request: The request.
        context_length: Maximum number of tokens of prompt and completion.

    Raises:
        InvalidRequestError: The prompt is empty.
        RequestTooLongError: The prompt leaves no room in the context, or less than `max_tokens` or `min_tokens`.
    """
    if not request.prompt:
        raise InvalidRequestError("The prompt is empty: the base's tokenizer makes no token of it.")
    room = context_length - len(request.prompt)
    max_tokens, min_tokens = request.sampling.max_tokens, request.sampling.min_tokens
    if room < (max_tokens or max(min_tokens, 1)):
        suffix = f" and max_tokens={max_tokens}" if max_tokens else ""
        suffix = suffix or (f" and min_tokens={min_tokens}" if min_tokens else "")
        raise RequestTooLongError(
            f"A prompt of {len(request.prompt)} tokens{suffix} does not fit the context of {context_length} tokens.",
            hint="Shorten the prompt or lower max_tokens.",
        )
    return max_tokens or min(max(DEFAULT_MAX_TOKENS, min_tokens), room)
