"""The result of a request: the answer, its usage, and the adapter that answered."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Self

from adapterhub.engine.interface import Completion, FinishReason
from adapterhub.engine.output_format import OutputFormat
from adapterhub.routing.decision import RouteDecision


@dataclass(frozen=True)
class Usage:
    """Tokens and time of an answer.

    Attributes:
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens generated, summed over all `n` answers.
        seconds: Wall time in the engine, from the prompt's first token to the answer's last.
    """

    prompt_tokens: int
    completion_tokens: int
    seconds: float

    @property
    def total_tokens(self) -> int:
        """Tokens of prompt and answer."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens for each second of wall time."""
        return self.completion_tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Generation:
    """The answer to one request.

    Attributes:
        text: The answer; with `n` above 1, the first of them.
        adapter: The name of the adapter that answered; None means the bare base. For a blend its reference, with
            versions: `json@1:0.7+support@2:0.3`.
        version: The adapter's version; None for a blend.
        route: The router's decision, if the request had `adapter="auto"`.
        usage: Tokens and time.
        finish_reason: `"stop"` (end token or stop string) or `"length"`.
        completions: All `n` answers, with token ids and log-probabilities.
        output_format: The output format of the request.
    """

    text: str
    adapter: str | None
    version: int | None
    route: RouteDecision | None
    usage: Usage
    finish_reason: FinishReason
    completions: tuple[Completion, ...]
    output_format: OutputFormat | None = None

    @property
    def parsed(self) -> Any:
        """The value of structured output: of the schema's type, or JSON's; the text where no schema was given.

        Raises:
            GenerationError: The text passes the grammar but not the type's own checks; see `OutputFormat.parse`.
        """
        return self.output_format.parse(self.text) if self.output_format else self.text


class GenerationStream(Iterator[str]):
    """A streamed answer: iterate over its text deltas, then read `result`.

    Closing it, or leaving its `with` block, aborts the request.

    Args:
        deltas: The text deltas, and last the `Generation`.
    """

    def __init__(self, deltas: Generator[str | Generation]) -> None:
        self._deltas = deltas
        self._result: Generation | None = None
        # A task may be cancelled while a thread still waits for the next delta: `close` has to wait for it.
        self._lock = threading.Lock()

    @property
    def result(self) -> Generation | None:
        """The whole answer once the stream has ended; None before, or if it was aborted."""
        return self._result

    def __next__(self) -> str:
        with self._lock:
            for delta in self._deltas:
                if isinstance(delta, str):
                    return delta
                self._result = delta
            raise StopIteration

    def close(self) -> None:
        """Aborts the rest of the answer."""
        with self._lock:
            self._deltas.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncGenerationStream(AsyncIterator[str]):
    """As `GenerationStream`, for `async for` and `async with`.

    Args:
        deltas: The text deltas, and last the `Generation`.
    """

    def __init__(self, deltas: AsyncGenerator[str | Generation]) -> None:
        self._deltas = deltas
        self._result: Generation | None = None

    @property
    def result(self) -> Generation | None:
        """The whole answer once the stream has ended; None before, or if it was aborted."""
        return self._result

    async def __anext__(self) -> str:
        async for delta in self._deltas:
            if isinstance(delta, str):
                return delta
            self._result = delta
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Aborts the rest of the answer."""
        await self._deltas.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
