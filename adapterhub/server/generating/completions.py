"""Completions: the calls of the hub, their answer, and the chunks of a stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

from adapterhub.engine.interface import TokenLogprob
from adapterhub.requests.generation import Generation
from adapterhub.requests.streaming import AsyncGenerationStream, CompletionChunk
from adapterhub.server.generating.answered_by import AnsweredBy
from adapterhub.server.generating.head import AnswerHead
from adapterhub.server.generating.logprobs import (
    completion_logprobs,
    joined,
    num_characters,
    prompt_logprobs_of,
)
from adapterhub.server.generating.merging import merge
from adapterhub.server.generating.model_names import adapter_of
from adapterhub.server.generating.output_formats import output_format_of
from adapterhub.server.generating.streaming import DONE, event
from adapterhub.server.generating.text_events import TextEvents
from adapterhub.server.generating.usage import StreamUsage, usage_of
from adapterhub.server.protocol.completions import CompletionRequest, Prompt
from adapterhub.server.shadow_traffic import LOWEST_PRIORITY
from adapterhub.server.state import ServerState


@dataclass(frozen=True)
class CompletionCall:
    """The completions of one request: `n` for each prompt, those of the first prompt first.

    Attributes:
        body: The request.
        head: What answer and chunks have in common.
        state: The server's parts.
    """

    body: CompletionRequest
    head: AnswerHead
    state: ServerState

    async def generate(self) -> tuple[dict[str, Any], AnsweredBy]:
        """The whole answer, and who gave it to the first prompt; errors as of `AdapterHub.generate`."""
        adapter, options = await self._prepare()
        generations = await self.state.hub.agenerate_batch(self.body.prompts, adapter, raw=True, **options)
        self._note(generations)
        return await self.state.hub._run_off_loop(self._answer, generations), AnsweredBy.of(generations[0])

    async def start(self) -> tuple[AsyncGenerator[bytes], AnsweredBy]:
        """Queues the prompts, all or none: their events, and who answers; errors as of `AdapterHub.generate`."""
        adapter, options = await self._prepare()
        async with AsyncExitStack() as started:
            streams = [
                self.state.hub.astream(prompt, adapter, raw=True, **options) for prompt in self.body.prompts
            ]
            for stream in streams:
                await started.enter_async_context(stream)
                await stream.start()
            started.pop_all()
        return self._events(streams), AnsweredBy.of(streams[0])

    async def _events(self, streams: Sequence[AsyncGenerationStream]) -> AsyncGenerator[bytes]:
        """The chunks of the answer as events; closing it aborts the answer.

        Args:
            streams: As `start` gave them.
        """
        usage = StreamUsage(self.body.stream_options, sum(stream.prompt_tokens for stream in streams))
        writer = _ChunkWriter(self, streams, usage)
        async with AsyncExitStack() as open_streams:
            for stream in streams:
                await open_streams.enter_async_context(stream)
            interval = self.body.tokens_per_chunk(self.state.config.stream_interval)
            chunks = merge([stream.chunks(interval) for stream in streams])
            open_streams.push_async_callback(chunks.aclose)
            async for at, chunk in chunks:
                if chunk.prompt_logprobs:  # thousands of tokens to decode
                    written = await self.state.hub._run_off_loop(writer.write, at, chunk)
                else:
                    written = writer.write(at, chunk)
                if written:
                    yield written
        results = [stream.result for stream in streams]
        self._note(results)
        last_chunk = usage.last_chunk(results)
        yield (writer.event(0, last_chunk) if last_chunk else b"") + DONE

    def index(self, prompt: int, completion: int) -> int:
        """The index of a choice.

        Args:
            prompt: Number of its prompt.
            completion: Which of the prompt's `n` completions.
        """
        return prompt * (self.body.n or 1) + completion

    def echoed(self, prompt: Prompt) -> str:
        """What comes before the answer to a prompt."""
        if not self.body.echo:
            return ""
        return prompt if isinstance(prompt, str) else self.state.hub.engine.tokenizer.decode(prompt)

    async def _prepare(self) -> tuple[str | None, dict[str, Any]]:
        if self.body.has_grammar:
            return await self.state.hub._run_off_loop(self._arguments)
        return self._arguments()

    def _arguments(self) -> tuple[str | None, dict[str, Any]]:
        options = self.head.options(self.body, self.state) | output_format_of(self.body)
        return adapter_of(self.body.model, self.state), options

    def _note(self, generations: Sequence[Generation | None]) -> None:
        if len(generations) == 1:  # a span tells of one answer
            self.head.answered(generations[0])
        self.state.shadows.copy(adapter_of(self.body.model, self.state), generations, self._ask_shadow)

    async def _ask_shadow(self, version: str) -> list[Generation]:
        _, options = await self.state.hub._run_off_loop(self._arguments)
        options = {**options, "priority": LOWEST_PRIORITY}
        return await self.state.hub.agenerate_batch(self.body.prompts, version, raw=True, **options)

    def _answer(self, generations: Sequence[Generation]) -> dict[str, Any]:
        answered_by = [AnsweredBy.of(generation) for generation in generations]
        return {
            **self.head.of("text_completion", answered_by[0]),
            "choices": [
                # The router may send prompts of one request to different adapters.
                choice | ({"adapterhub": answered_by[at].field} if len(generations) > 1 else {})
                for at, generation in enumerate(generations)
                for choice in self._choices(at, generation)
            ],
            "usage": usage_of(generations),
            "adapterhub": answered_by[0].field,
        }

    def _choices(self, at: int, generation: Generation) -> Iterator[dict[str, Any]]:
        """The choices for one prompt; they share what is told of the prompt's tokens, which may be much."""
        body, texts = self.body, self.state.token_texts
        echoed, of_echo = self.echoed(body.prompts[at]), None
        if body.echo:
            of_echo = completion_logprobs(
                generation.prompt_token_ids, generation.prompt_logprobs, texts, top=body.logprobs
            )
        of_prompt = prompt_logprobs_of(generation, body.prompt_logprobs, texts)
        for number, completion in enumerate(generation.completions):
            text, logprobs = echoed, of_echo
            if not body.only_echoes:
                text += completion.text
                token_ids, found, offset = completion.token_ids, completion.logprobs, num_characters(of_echo)
                own = completion_logprobs(token_ids, found, texts, top=body.logprobs, offset=offset)
                logprobs = joined(of_echo, own)
            yield _choice(self.index(at, number), text, logprobs, completion.finish_reason) | of_prompt


class _ChunkWriter:
    """Writes the chunks of a stream as events, and counts the characters of each choice for `text_offset`.

    Args:
        call: The request.
        streams: The answer to each prompt.
        usage: Counts the tokens.
    """

    def __init__(
        self, call: CompletionCall, streams: Sequence[AsyncGenerationStream], usage: StreamUsage
    ) -> None:
        self._call, self._streams, self._usage = call, streams, usage
        self._answered_by = [AnsweredBy.of(stream) for stream in streams]
        self._heads = [call.head.of("text_completion", by) for by in self._answered_by]
        self._texts: dict[int, TextEvents] = {}
        self._begun: set[int] = set()
        self._offsets: Counter[int] = Counter()

    def write(self, prompt: int, chunk: CompletionChunk) -> bytes:
        """The chunks that some tokens give; empty where their text is held back.

        Args:
            prompt: Number of the prompt.
            chunk: The tokens.
        """
        return b"".join(self._events(prompt, chunk))

    def _events(self, prompt: int, chunk: CompletionChunk) -> Iterator[bytes]:
        index, counted = self._call.index(prompt, chunk.index), self._usage.count(len(chunk.token_ids))
        if self._call.body.echo and index not in self._begun:
            self._begun.add(index)
            yield self.event(prompt, {"choices": [self._echo(prompt, index, chunk)], **counted})
        if self._call.body.only_echoes:
            chunk = replace(chunk, text="", token_ids=(), logprobs=None)
        if chunk.logprobs or chunk.finish_reason or self._usage.is_continuous:
            if chunk.text or chunk.logprobs or chunk.finish_reason:
                yield self.event(prompt, self._fields(prompt, index, chunk, counted))
        elif chunk.text:
            yield self._text_events(prompt, index, counted).event(chunk.text)

    def event(self, prompt: int, fields: Mapping[str, Any]) -> bytes:
        """One event.

        Args:
            prompt: Number of the prompt.
            fields: What follows the fields that all chunks begin with.
        """
        return event({**self._heads[prompt], **fields})

    def _echo(self, prompt: int, index: int, chunk: CompletionChunk) -> dict[str, Any]:
        """The prompt as a choice, and the log-probabilities of its tokens."""
        echoed = self._call.echoed(self._call.body.prompts[prompt])
        token_ids = self._streams[prompt].prompt_token_ids
        return _choice(index, echoed, self._logprobs(index, token_ids, chunk.prompt_logprobs))

    def _fields(
        self, prompt: int, index: int, chunk: CompletionChunk, counted: Mapping[str, Any]
    ) -> dict[str, Any]:
        choice = _choice(
            index, chunk.text, self._logprobs(index, chunk.token_ids, chunk.logprobs), chunk.finish_reason
        )
        said = {"adapterhub": self._answered_by[prompt].field} if chunk.finish_reason else {}
        return {"choices": [choice], **said, **counted}

    def _text_events(self, prompt: int, index: int, counted: Mapping[str, Any]) -> TextEvents:
        if index not in self._texts:
            head = self._heads[prompt]
            self._texts[index] = TextEvents(
                lambda text: {**head, "choices": [_choice(index, text)], **counted}
            )
        return self._texts[index]

    def _logprobs(
        self, index: int, token_ids: Sequence[int], found: Sequence[TokenLogprob | None] | None
    ) -> dict[str, Any] | None:
        top, texts = self._call.body.logprobs, self._call.state.token_texts
        logprobs = completion_logprobs(token_ids, found, texts, top=top, offset=self._offsets[index])
        self._offsets[index] += num_characters(logprobs)
        return logprobs


def _choice(
    index: int, text: str, logprobs: dict[str, Any] | None = None, finish_reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
