"""An engine without a model: its completion is the name of the adapter and the prompt.

For documentation, unit tests, and applications that are developed without weights. Everything around it is real:
registry, prompts, sampling parameters, stop strings, token counts.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from typing import Any

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


class EchoEngine:
    """Completes every prompt with `[adapter] prompt`, one character for each token.

    Args:
        base_name: The name of its base.
        context_length: Maximum number of characters of a prompt and its completion together.
    """

    fingerprint: BaseFingerprint | None = None

    def __init__(self, base_name: str = "echo", context_length: int = 8192) -> None:
        self.base_name = base_name
        self.context_length = context_length
        self.tokenizer = EchoTokenizer()
        self.default_sampling_params: Mapping[str, Any] = {}

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Completes all requests; see `Engine.generate`."""
        streams = [self.stream(request) for request in requests]
        return [
            [Completion.of(list(stream))] * request.sampling.n
            for request, stream in zip(requests, streams, strict=True)
        ]

    def stream(self, request: Request) -> Generator[TokenOutput]:
        """Completes one request, a character at a time; see `Engine.stream`."""
        if request.output_format:
            raise InvalidRequestError(
                "EchoEngine repeats the prompt and cannot enforce an output format.",
                hint="Load a base; the demo's is small.",
            )
        return self._echo(request, max_completion_tokens(request, self.context_length))

    async def agenerate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """As `generate`."""
        return self.generate(requests)

    async def astream(self, request: Request) -> AsyncGenerator[TokenOutput]:
        """As `stream`."""
        for output in self.stream(request):
            yield output

    def pin(self, adapter: LoraRequest, pinned: bool = True) -> None:
        """Does nothing: there are no slots."""

    def preload(self, adapter: LoraRequest) -> None:
        """Does nothing: there are no weights."""

    def unload(self, adapter: LoraRequest) -> None:
        """Does nothing: there are no weights."""

    def stats(self) -> EngineStats:
        """Zeros: it holds nothing."""
        return EngineStats()

    def close(self) -> None:
        """Does nothing: it holds nothing."""

    def _echo(self, request: Request, max_tokens: int) -> Generator[TokenOutput]:
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
