"""Streamed answers: texts as they come, or chunks of all completions side by side; at the end the `Generation`."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Self

from adapterhub.engine.interface import (
    Completion,
    Engine,
    FinishReason,
    PromptLogprobs,
    TokenLogprob,
    TokenOutput,
    TokenStream,
)
from adapterhub.errors import AdapterHubError, InvalidRequestError
from adapterhub.requests.generation import Generation
from adapterhub.requests.preparing import PreparedRequest
from adapterhub.routing.decision import RouteDecision


@dataclass(frozen=True)
class CompletionChunk:
    """What some tokens add to one completion of a streamed answer.

    Attributes:
        index: Which of the `n` completions.
        text: New text; empty while a character or a possible stop string is incomplete.
        token_ids: The new tokens: one, or several where the reader was slower than the engine or asked for it.
        logprobs: Their log-probabilities, if requested.
        finish_reason: Set on the completion's last chunk: `"stop"` or `"length"`.
        prompt_logprobs: Set on its first chunk, if requested: those of the prompt's tokens.
    """

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    prompt_logprobs: PromptLogprobs | None = None

    @classmethod
    def of(cls, outputs: Sequence[TokenOutput]) -> Self:
        """Joins outputs of one completion that follow each other."""
        if len(outputs) == 1:  # nearly always, and for every token
            one = outputs[0]
            logprobs = (one.logprob,) if one.logprob else None
            return cls(one.index, one.text, (one.token_id,), logprobs, one.finish_reason, one.prompt_logprobs)
        return cls(
            index=outputs[0].index,
            text="".join(output.text for output in outputs),
            token_ids=tuple(output.token_id for output in outputs),
            logprobs=tuple(output.logprob for output in outputs if output.logprob) or None,
            finish_reason=outputs[-1].finish_reason,
            prompt_logprobs=outputs[0].prompt_logprobs,
        )


class _HeldOutputs:
    """Outputs of each completion of a stream that wait until they are enough for a chunk.

    Args:
        interval: How many are enough; the first and the last ones of a completion do not wait.
    """

    def __init__(self, interval: int) -> None:
        self._interval = interval
        self._held: dict[int, list[TokenOutput]] = {}

    def release(self, outputs: list[TokenOutput]) -> Iterable[list[TokenOutput]]:
        """Those that need not wait any longer, each list of one completion.

        Args:
            outputs: The new ones, of any completions; those of one of them in order.
        """
        if len(outputs) == 1 and self._interval == 1:  # nearly always
            return (outputs,)
        of_each = groupby(outputs, key=lambda output: output.index)
        return filter(None, [self._add(index, list(of_one)) for index, of_one in of_each])

    def release_all(self) -> Iterable[list[TokenOutput]]:
        """Those that wait."""
        return filter(None, self._held.values())

    def _add(self, index: int, outputs: list[TokenOutput]) -> list[TokenOutput]:
        is_first = index not in self._held
        held = self._held.setdefault(index, [])
        held += outputs
        if not (is_first or len(held) >= self._interval or held[-1].finish_reason):
            return []
        self._held[index] = []
        return held


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


@dataclass
class _Started:
    """A request that the engine has taken, and what has come of it.

    Attributes:
        prepared: The request.
        outputs: From the engine.
        at: When it was queued.
        received: The outputs of each completion.
    """

    prepared: PreparedRequest
    outputs: TokenStream
    at: float
    received: list[list[TokenOutput]]

    def generation(self) -> Generation | None:
        if not all(outputs and outputs[-1].finish_reason for outputs in self.received):
            return None  # it was aborted
        completions = [Completion.of(outputs) for outputs in self.received]
        return self.prepared.generation(completions, time.perf_counter() - self.at)


class AsyncGenerationStream(AsyncIterator[str]):
    """A streamed answer in an event loop: `async for` over its texts or its `chunks`, then read `result`.

    Texts are those of the first completion. Closing it, leaving its `async with` block, or cancelling a task that waits
    for it aborts the request. One task uses it.

    Args:
        prepare: Prepares the request, off the event loop.
        engine: Answers it.
    """

    def __init__(self, prepare: Callable[[], Awaitable[PreparedRequest]], engine: Engine) -> None:
        self._prepare, self._engine = prepare, engine
        self._started: _Started | None = None
        self._unread: deque[TokenOutput] = deque()
        self._result: Generation | None = None
        self._closed = False

    async def start(self) -> Self:
        """Prepares the request and queues it, unless that was done; returns before there is an output.

        Raises:
            AdapterHubError: As `AdapterHub.generate`, but for what depends on the adapter's files; nothing was queued.
        """
        if self._started is None and not self._closed:
            prepared = await self._prepare()
            outputs = self._engine.astream(prepared.request)
            at = time.perf_counter()
            await outputs.start()
            received: list[list[TokenOutput]] = [[] for _ in range(prepared.request.sampling.n)]
            self._started = _Started(prepared, outputs, at, received)
            if self._closed:  # meanwhile, by another task
                await self.aclose()
        return self

    @property
    def adapter(self) -> str | None:
        """As `Generation.adapter`, once the stream has started."""
        resolved = self._request.adapter
        return resolved.name if resolved else None

    @property
    def version(self) -> int | None:
        """As `Generation.version`, once the stream has started."""
        resolved = self._request.adapter
        return resolved.version if resolved else None

    @property
    def route(self) -> RouteDecision | None:
        """As `Generation.route`, once the stream has started."""
        return self._request.route

    @property
    def prompt_token_ids(self) -> Sequence[int]:
        """Token ids of the prompt, once the stream has started."""
        return self._request.request.prompt

    @property
    def prompt_tokens(self) -> int:
        """Number of tokens of the prompt, once the stream has started."""
        return len(self.prompt_token_ids)

    @property
    def result(self) -> Generation | None:
        """The whole answer once the stream has ended; None before, or if it was aborted."""
        return self._result

    async def chunks(self, stream_interval: int = 1) -> AsyncIterator[CompletionChunk]:
        """The chunks of all completions, as they come; raises as `start`, and where a completion fails.

        Args:
            stream_interval: Least number of tokens of a chunk. The first token and the last ones of a completion do
                not wait for others; vLLM's `--stream-interval`.
        """
        held = _HeldOutputs(stream_interval)
        try:
            while outputs := await self._get():
                for of_one in held.release(outputs):
                    yield CompletionChunk.of(of_one)
        except AdapterHubError:
            for of_one in held.release_all():
                yield CompletionChunk.of(of_one)
            raise

    async def __anext__(self) -> str:
        while self._unread or await self._fill():
            output = self._unread.popleft()
            if output.index == 0 and output.text:
                return output.text
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Aborts the rest of the answer: it runs in no further step of the engine."""
        self._closed = True
        self._unread.clear()
        if self._started:
            await self._started.outputs.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def _request(self) -> PreparedRequest:
        if self._started is None:
            raise InvalidRequestError("The stream has not started.", hint="Call `await stream.start()`.")
        return self._started.prepared

    async def _fill(self) -> bool:
        self._unread.extend(await self._get())
        return bool(self._unread)

    async def _get(self) -> list[TokenOutput]:
        if self._started is None:
            await self.start()
        if self._closed or self._started is None:
            return []
        outputs = await self._started.outputs.get()
        for output in outputs:
            self._started.received[output.index].append(output)
        if not outputs:
            self._result = self._started.generation()
        return outputs
