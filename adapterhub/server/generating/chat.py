"""Chat Completions: the call of the hub, its answer, and the chunks of a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from adapterhub.engine.interface import Completion
from adapterhub.requests.generation import Generation
from adapterhub.requests.streaming import AsyncGenerationStream, CompletionChunk
from adapterhub.server.generating.answered_by import AnsweredBy
from adapterhub.server.generating.head import AnswerHead
from adapterhub.server.generating.logprobs import chat_logprobs
from adapterhub.server.generating.model_names import adapter_of
from adapterhub.server.generating.streaming import DONE, event
from adapterhub.server.generating.usage import StreamUsage, usage_object
from adapterhub.server.protocol.chat import ChatCompletionRequest
from adapterhub.server.state import ServerState


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
        prompt, adapter, options = self._arguments()
        generation = await self.state.hub.agenerate(prompt, adapter, **options)
        self.head.answered(generation)
        by = AnsweredBy.of(generation)
        if self.body.logprobs:  # thousands of tokens to decode
            return await self.state.hub._run_off_loop(self._answer, generation, by), by
        return self._answer(generation, by), by

    async def start(self) -> AsyncGenerationStream:
        """Queues the request; errors as of `AdapterHub.generate`."""
        prompt, adapter, options = self._arguments()
        return await self.state.hub.astream(prompt, adapter, **options).start()

    async def events(self, stream: AsyncGenerationStream) -> AsyncGenerator[bytes]:
        """The chunks of the answer as events; closing it aborts the answer.

        Args:
            stream: As `start` gave it.
        """
        by, begun = AnsweredBy.of(stream), set[int]()
        head = self.head.of("chat.completion.chunk", by)
        usage = StreamUsage(self.body.stream_options, stream.prompt_tokens)
        async with aclosing(stream):
            async for chunk in stream.chunks():
                if chunk.index not in begun:
                    begun.add(chunk.index)
                    first = _choice(chunk.index, {"role": "assistant", "content": ""})
                    yield event({**head, "choices": [first], **usage.count(0)})
                counted = usage.count(len(chunk.token_ids))
                for choice in self._choices(chunk):
                    yield event({**head, "choices": [choice], **counted})
                if chunk.finish_reason:
                    last = _choice(chunk.index, {}, chunk.finish_reason)
                    yield event({**head, "choices": [last], **counted, "adapterhub": by.field})
        self.head.answered(stream.result)
        if usage.last_chunk:
            yield event({**head, **usage.last_chunk})
        yield DONE

    def _arguments(self) -> tuple[Any, str | None, dict[str, Any]]:
        options = {**self.body.options(), "where": self.state.caller.route_filter}
        return self.body.conversation(), adapter_of(self.body.model, self.state), options

    def _answer(self, generation: Generation, by: AnsweredBy) -> dict[str, Any]:
        choices = [self._whole(index, each) for index, each in enumerate(generation.completions)]
        return {
            **self.head.of("chat.completion", by),
            "choices": choices,
            "usage": usage_object(generation.usage.prompt_tokens, generation.usage.completion_tokens),
            "adapterhub": by.field,
        }

    def _whole(self, index: int, completion: Completion) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": completion.text, "refusal": None},
            "logprobs": chat_logprobs(completion.logprobs, self.state.token_texts),
            "finish_reason": completion.finish_reason,
        }

    def _choices(self, chunk: CompletionChunk) -> Iterator[dict[str, Any]]:
        """What a chunk adds; log-probabilities come with their tokens, also where their text is held back."""
        if chunk.text or chunk.logprobs:
            logprobs = chat_logprobs(chunk.logprobs, self.state.token_texts)
            yield _choice(chunk.index, {"content": chunk.text}, logprobs=logprobs)


def _choice(
    index: int,
    delta: dict[str, Any],
    finish_reason: str | None = None,
    logprobs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
