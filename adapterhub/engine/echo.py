"""An engine without a model: its completion is the name of the adapter and the prompt.

For documentation, unit tests, and applications that are developed without weights. Everything around it is real:
registry, prompts, sampling parameters, stop strings, token counts.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.engine.decoding.detokenizer import IncrementalDetokenizer
from adapterhub.engine.interface import (
    Completion,
    FinishReason,
    LoraRequest,
    Request,
    TokenOutput,
    max_completion_tokens,
)
from adapterhub.engine.meter import EndReason, Meter, Residency, SequenceTimes
from adapterhub.engine.stats import EngineStats
from adapterhub.errors import InvalidRequestError


class EchoTokenizer:
    """A tokenizer whose tokens are Unicode characters."""

    chat_template: Any = None
    eos_token: str | None = None
    all_special_tokens: Sequence[str] = ()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The code point of each character."""
        return [ord(character) for character in text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The inverse of `encode`."""
        return "".join(map(chr, token_ids))

    def get_added_vocab(self) -> dict[str, int]:
        """None: each token is one character."""
        return {}

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """None: each token is one character."""
        return {}

    @property
    def special_tokens_map(self) -> Mapping[str, Any]:
        """None."""
        return {}

    def get_vocab(self) -> Mapping[str, int]:
        """None that are longer than a character."""
        return {}


@dataclass(eq=False)
class _EchoSequence:
    request: Request
    output_token_ids: list[int] = field(default_factory=list)
    times: SequenceTimes = field(default_factory=SequenceTimes)

    @property
    def adapter(self) -> LoraRequest | None:
        return self.request.adapter

    @property
    def prompt_token_ids(self) -> Sequence[int]:
        return self.request.prompt


class EchoStream:
    """See `TokenStream`.

    Args:
        complete: Checks the request and starts one completion.
        count: Number of completions.
        seconds: Time before each character.
    """

    def __init__(self, complete: Callable[[], Iterator[TokenOutput]], count: int, seconds: float) -> None:
        self._complete, self._count, self._seconds = complete, count, seconds
        self._outputs: Iterator[TokenOutput] | None = None

    async def start(self) -> None:
        """Checks the request."""
        if self._outputs is None:
            completions = [self._complete() for _ in range(self._count)]
            self._outputs = (
                replace(output, index=index)
                for outputs in zip(*completions, strict=True)
                for index, output in enumerate(outputs)
            )

    async def get(self) -> list[TokenOutput]:
        """The next output; none at the end."""
        output = await anext(self, None)
        return [output] if output else []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenOutput:
        await self.start()
        await asyncio.sleep(self._seconds)
        for output in self._outputs or ():
            return output
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Ends the completions."""
        self._outputs = iter(())


class EchoEngine:
    """Completes every prompt with `[adapter] prompt`, one character for each token.

    Args:
        base_name: The name of its base.
        context_length: Maximum number of characters of a prompt and its completion together.
        token_seconds: What each character takes for callers in an event loop, as a real base would.
    """

    fingerprint: BaseFingerprint | None = None

    def __init__(
        self, base_name: str = "echo", context_length: int = 8192, *, token_seconds: float = 0.0
    ) -> None:
        self.base_name = base_name
        self.context_length = context_length
        self.tokenizer = EchoTokenizer()
        self.default_sampling_params: Mapping[str, Any] = {}
        self._token_seconds = token_seconds
        self._meter, self._running = Meter(), list[_EchoSequence]()
        self._lock = threading.Lock()  # guards both: each caller's thread steps its own sequence

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Completes all requests; see `Engine.generate`."""
        streams = [[self.stream(one) for _ in range(one.sampling.n)] for one in requests]
        return [[Completion.of(list(stream)) for stream in of_one] for of_one in streams]

    def stream(self, request: Request) -> Generator[TokenOutput]:
        """Completes one request, a character at a time; see `Engine.stream`."""
        if request.output_format:
            raise InvalidRequestError(
                "EchoEngine repeats the prompt and cannot enforce an output format.",
                hint="Load a base; the demo's is small.",
            )
        if request.sampling.prompt_logprobs is not None:
            raise InvalidRequestError(
                "EchoEngine has no model, so no log-probabilities of a prompt.",
                hint="Load a base; the demo's is small.",
            )
        if not all(map(_is_character, request.prompt)):
            raise InvalidRequestError(
                f"A token id of EchoEngine is a character's, up to {sys.maxunicode}, and no surrogate."
            )
        return self._echo(request, max_completion_tokens(request, self.context_length))

    async def agenerate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """As `generate`."""
        completions = self.generate(requests)
        longest = max((len(one.token_ids) for of_one in completions for one in of_one), default=0)
        await asyncio.sleep(self._token_seconds * longest)
        return completions

    def astream(self, request: Request) -> EchoStream:
        """Completes one request `sampling.n` times, a character at a time; see `Engine.astream`."""
        return EchoStream(partial(self.stream, request), request.sampling.n, self._token_seconds)

    def pin(self, adapter: LoraRequest, pinned: bool = True) -> None:
        """Does nothing: there are no slots."""

    def preload(self, adapter: LoraRequest) -> None:
        """Does nothing: there are no weights."""

    def unload(self, adapter: LoraRequest) -> None:
        """Does nothing: there are no weights."""

    def stats(self) -> EngineStats:
        """What it answers and has answered; it holds nothing."""
        with self._lock:
            running = list(self._running)
            return EngineStats(running=len(running), **self._meter.figures(running, (), 0, Residency()))

    def close(self) -> None:
        """Does nothing: it holds nothing."""

    def _echo(self, request: Request, max_tokens: int) -> Generator[TokenOutput]:
        sequence = _EchoSequence(request)
        with self._lock:
            self._running.append(sequence)
            self._meter.submit(sequence)
            self._meter.start(sequence)
        reason: EndReason = "abort"
        try:
            for output in self._outputs(request, max_tokens):
                sequence.output_token_ids.append(output.token_id)
                sequence.times.token()
                with self._lock:
                    self._meter.token(sequence)
                    if output.finish_reason:
                        reason = output.finish_reason
                        self._end(sequence, reason)
                timings = sequence.times.timings() if output.finish_reason else None
                yield replace(output, timings=timings)
        finally:
            with self._lock:
                self._end(sequence, reason)

    def _end(self, sequence: _EchoSequence, reason: EndReason) -> None:
        if sequence in self._running:
            self._running.remove(sequence)
            self._meter.end(sequence, reason)

    def _outputs(self, request: Request, max_tokens: int) -> Generator[TokenOutput]:
        name = request.adapter.name if request.adapter else "base"
        characters = f"[{name}] {self.tokenizer.decode(request.prompt)}"[:max_tokens]
        detokenizer = IncrementalDetokenizer(self.tokenizer, request.sampling.stop)
        for count, character in enumerate(characters, start=1):
            text = detokenizer.push(ord(character))
            reason: FinishReason | None = "stop" if detokenizer.stopped else None
            if reason is None and count == len(characters):
                text += detokenizer.flush()
                reason = "length" if count == max_tokens else "stop"
            yield TokenOutput(text, ord(character), None, reason)
            if reason:
                return


def _is_character(token_id: int) -> bool:
    return token_id <= sys.maxunicode and not 0xD800 <= token_id < 0xE000
