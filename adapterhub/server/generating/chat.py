"""Chat Completions: the call of the hub, its answer, and the chunks of a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from adapterhub.engine.interface import Completion
from adapterhub.requests.generation import Generation
from adapterhub.requests.streaming import AsyncGenerationStream, CompletionChunk
from adapterhub.server.generating.answered_by import AnsweredBy
from adapterhub.server.generating.conversations import (
    AnswerParser,
    Call,
    chat_request,
    copy_to_shadow,
    split_answer,
    violations_of,
)
from adapterhub.server.generating.head import AnswerHead
from adapterhub.server.generating.helper_prompts import chat_adapter
from adapterhub.server.generating.logprobs import chat_logprobs, prompt_logprobs_of
from adapterhub.server.generating.output_formats import output_format_of
from adapterhub.server.generating.streaming import DONE, event
from adapterhub.server.generating.text_events import TextEvents
from adapterhub.server.generating.tool_calls import message_of, part_delta
from adapterhub.server.generating.tools import functions_of, tool_choice_of
from adapterhub.server.generating.usage import StreamUsage, usage_of
from adapterhub.server.protocol.chat import ChatCompletionRequest
from adapterhub.server.state import ServerState
from adapterhub.tool_calling import ChatRequest, ToolCallChunk

_MAX_INLINE_MESSAGES = 100
"""More of them are converted off the event loop."""


@dataclass(frozen=True)
class ChatCall:
    """One chat completion.

    Attributes:
        body: The request.
        head: What answer and chunks have in common.
        state: The server's parts.
    """

    body: ChatCompletionRequest
    head: AnswerHead
    state: ServerState

    async def generate(self) -> tuple[dict[str, Any], AnsweredBy]:
        """The whole answer, and who gave it; errors as of `AdapterHub.generate`."""
        request = await self._prepare()
        generation = await self.state.hub.agenerate(
            request.messages, request.adapter, tools=request.tools, **request.options
        )
        self._note(generation)
        by = AnsweredBy.of(generation)
        has_logprobs = self.body.logprobs or self.body.prompt_logprobs is not None
        if has_logprobs or request.may_call_tools:  # thousands of tokens to decode, arguments to check
            return await self.state.hub._run_off_loop(self._answer, generation, request, by), by
        return self._answer(generation, request, by), by

    async def start(self) -> tuple[AsyncGenerator[bytes], AnsweredBy]:
        """Queues the request: its events, and who answers; errors as of `AdapterHub.generate`."""
        request = await self._prepare()
        stream = self.state.hub.astream(
            request.messages, request.adapter, tools=request.tools, **request.options
        )
        await stream.start()
        return self._events(request, stream), AnsweredBy.of(stream)

    async def _events(self, request: ChatRequest, stream: AsyncGenerationStream) -> AsyncGenerator[bytes]:
        """The chunks of the answer as events; closing it aborts the answer.

        Args:
            request: As `start` gave it.
            stream: The same.
        """
        by, parsers, texts = AnsweredBy.of(stream), dict[int, AnswerParser](), dict[int, TextEvents]()
        head = self.head.of("chat.completion.chunk", by)
        usage = StreamUsage(self.body.stream_options, stream.prompt_tokens)
        interval = self.body.tokens_per_chunk(self.state.config.stream_interval)
        only_text = not (request.may_call_tools or usage.is_continuous)
        async with aclosing(stream):
            async for chunk in stream.chunks(interval):
                if (
                    only_text and chunk.index in texts and _only_adds_text(chunk)
                ):  # nearly always: a short way
                    usage.count(len(chunk.token_ids))
                    yield texts[chunk.index].event(chunk.text)
                    continue
                written = list[bytes]()  # sent together
                if chunk.index not in parsers:
                    parsers[chunk.index] = AnswerParser(request)
                    first = _choice(chunk.index, {"role": "assistant", "content": ""})
                    written.append(event({**head, "choices": [first], **usage.count(0)}))
                    texts[chunk.index] = _text_events(chunk.index, head, usage.count(0))
                counted = usage.count(len(chunk.token_ids))
                for part, logprobs in self._parts(chunk, parsers[chunk.index]):
                    if isinstance(part, str) and logprobs is None and not usage.is_continuous:
                        written.append(texts[chunk.index].event(part))
                    else:
                        choice = _choice(chunk.index, part_delta(part), logprobs=logprobs)
                        written.append(event({**head, "choices": [choice], **counted}))
                if chunk.finish_reason:
                    calls = parsers[chunk.index].calls
                    last = _choice(chunk.index, {}, "tool_calls" if calls else chunk.finish_reason)
                    said = await self._said(by, calls, request)
                    written.append(event({**head, "choices": [last], **counted, "adapterhub": said}))
                if written:
                    yield b"".join(written)
        self._note(stream.result)
        last_chunk = usage.last_chunk([stream.result])
        yield (event({**head, **last_chunk}) if last_chunk else b"") + DONE

    def _note(self, generation: Generation | None) -> None:
        self.head.answered(generation)
        copy_to_shadow(self.state, self.body.model, generation, self._request)

    async def _prepare(self) -> ChatRequest:
        body = self.body
        is_long = len(body.messages) > _MAX_INLINE_MESSAGES
        if is_long or body.tools or body.has_calls or body.has_grammar:
            return await self.state.hub._run_off_loop(self._request)
        return self._request()

    def _request(self, adapter: str | None = None) -> ChatRequest:
        """The request to the hub; `adapter` replaces the one that it names."""
        body, messages = self.body, self.body.conversation()
        functions = functions_of(tool.function for tool in body.tools or ())
        return chat_request(
            self.state,
            adapter or chat_adapter(body.model, messages, self.state) or "base",
            messages,
            self.head.options(body, self.state),
            functions=functions,
            choice=tool_choice_of(functions, body.tool_choice, body.parallel_tool_calls),
            output_format=output_format_of(body),
        )

    def _answer(self, generation: Generation, request: ChatRequest, by: AnsweredBy) -> dict[str, Any]:
        split = [split_answer(completion.text, request) for completion in generation.completions]
        whole = zip(generation.completions, split, strict=True)
        return {
            **self.head.of("chat.completion", by),
            "choices": [self._whole(index, *answer) for index, answer in enumerate(whole)],
            "usage": usage_of([generation]),
            **prompt_logprobs_of(generation, self.body.prompt_logprobs, self.state.token_texts),
            "adapterhub": by.field | violations_of([call for _, calls in split for call in calls], request),
        }

    async def _said(self, by: AnsweredBy, calls: Sequence[Call], request: ChatRequest) -> dict[str, Any]:
        """What the last chunk says of an answer."""
        return by.field | (await self.state.hub._run_off_loop(violations_of, calls, request) if calls else {})

    def _whole(self, index: int, completion: Completion, split: tuple[str, list[Call]]) -> dict[str, Any]:
        text, calls = split
        return {
            "index": index,
            "message": message_of(text, calls),
            "logprobs": chat_logprobs(completion.logprobs, self.state.token_texts),
            "finish_reason": "tool_calls" if calls else completion.finish_reason,
        }

    def _parts(
        self, chunk: CompletionChunk, parser: AnswerParser
    ) -> Iterator[tuple[str | ToolCallChunk, dict[str, Any] | None]]:
        """What a chunk adds; log-probabilities come with their tokens, also where their text is held back."""
        logprobs = chat_logprobs(chunk.logprobs, self.state.token_texts)
        parts = parser.push(chunk.text, ended=chunk.finish_reason is not None)
        for part in parts or ([""] if logprobs else []):
            yield part, logprobs
            logprobs = None


def _only_adds_text(chunk: CompletionChunk) -> bool:
    return bool(chunk.text) and not (chunk.logprobs or chunk.finish_reason)


def _text_events(index: int, head: Mapping[str, Any], counted: Mapping[str, Any]) -> TextEvents:
    return TextEvents(lambda text: {**head, "choices": [_choice(index, {"content": text})], **counted})


def _choice(
    index: int,
    delta: dict[str, Any],
    finish_reason: str | None = None,
    logprobs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
