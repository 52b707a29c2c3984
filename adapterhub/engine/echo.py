"""An engine without a model: it answers with the name of the adapter and the prompt it was given.

For documentation, for unit tests, and for trying an application's wiring where no weights are at hand. Everything
around it is real: registry, prompts, sampling arguments, stop strings, token counts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.engine.decoding.detokenizer import IncrementalDetokenizer
from adapterhub.engine.interface import (
    Completion,
    FinishReason,
    LoraRequest,
    Request,
    TokenOutput,
    answer_budget,
)
from adapterhub.engine.stats import EngineStats
from adapterhub.errors import InvalidRequestError


class EchoTokenizer:
    """A tokenizer whose tokens are Unicode characters."""

    chat_template: Any = None
    eos_token: str | None = None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """One id a character: its code point."""
        return [ord(character) for character in text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The inverse of `encode`."""
        return "".join(map(chr, token_ids))

    def get_added_vocab(self) -> dict[str, int]:
        """None: each token is one character."""
        return {}

    def apply_chat_template(self, conversation: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """Joins the messages as `role: content` lines; for a card that brings its own template."""
        return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in conversation)


class EchoEngine:
    """Answers `[adapter] prompt`, token by token, the same each time.

    Args:
        base_name: The name that it gives its base.
        context_length: Most characters of a prompt and its answer together.
    """

    fingerprint: BaseFingerprint | None = None

    def __init__(self, base_name: str = "echo", context_length: int = 8192) -> None:
        self.base_name = base_name
        self.context_length = context_length
        self.tokenizer = EchoTokenizer()

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Answers every request; see `Engine.generate`."""
        for request in requests:
            self._budget(request)
        return [[Completion.of(list(self.stream(r)))] * r.sampling.n for r in requests]

    def stream(self, request: Request) -> Iterator[TokenOutput]:
        """Answers one request a character at a time; see `Engine.stream`."""
        return self._pieces(request, self._budget(request))

    async def agenerate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """As `generate`."""
        return self.generate(requests)

    async def astream(self, request: Request) -> AsyncIterator[TokenOutput]:
        """As `stream`."""
        for piece in self.stream(request):
            yield piece

    def pin(self, adapter: LoraRequest, pinned: bool = True) -> None:
        """Nothing to keep."""

    def preload(self, adapter: LoraRequest) -> None:
        """Nothing to load."""

    def unload(self, adapter: LoraRequest) -> None:
        """Nothing to forget."""

    def stats(self) -> EngineStats:
        """Zeros: it holds nothing."""
        return EngineStats()

    def close(self) -> None:
        """Nothing to free."""

    def _budget(self, request: Request) -> int:
        if request.output_format:
            raise InvalidRequestError(
                "EchoEngine repeats the prompt and cannot keep to a form.",
                hint="Load a base; the demo's is small.",
            )
        return answer_budget(request, self.context_length)

    def _pieces(self, request: Request, budget: int) -> Iterator[TokenOutput]:
        answer = self._answer(request)[:budget]
        text = IncrementalDetokenizer(self.tokenizer, request.sampling.stop)
        for place, character in enumerate(answer, start=1):
            piece = text.push(ord(character))
            reason: FinishReason | None = "stop" if text.stopped else None
            if reason is None and place == len(answer):
                piece += text.flush()
                reason = "length" if place == budget else "stop"
            yield TokenOutput(piece, ord(character), None, reason)
            if reason:
                return

    def _answer(self, request: Request) -> str:
        who = request.adapter.name if request.adapter else "base"
        return f"[{who}] {self.tokenizer.decode(request.prompt)}"
