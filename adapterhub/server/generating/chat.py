"""Chat Completions: the call of the hub, its answer, and the chunks of a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from adapterhub.requests.generation import Generation
from adapterhub.requests.streaming import AsyncGenerationStream
from adapterhub.server.generating.answered_by import AnsweredBy
from adapterhub.server.generating.head import AnswerHead
from adapterhub.server.generating.model_names import adapter_of
from adapterhub.server.generating.streaming import DONE, event
from adapterhub.server.generating.usage import usage_object
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
        by = AnsweredBy.of(generation)
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
        by = AnsweredBy.of(stream)
        begun: set[int] = set()
        async with aclosing(stream):
            async for chunk in stream.chunks():
                if chunk.index not in begun:
                    begun.add(chunk.index)
                    yield self._chunk(by, [_delta(chunk.index, {"role": "assistant", "content": ""})])
                if chunk.text:
                    yield self._chunk(by, [_delta(chunk.index, {"content": chunk.text})])
                if chunk.finish_reason:
                    yield self._chunk(by, [_delta(chunk.index, {}, chunk.finish_reason)])
            yield DONE

    def _arguments(self) -> tuple[Any, str | None, dict[str, Any]]:
        options = {**self.body.options(), "where": self.state.caller.route_filter}
        return self.body.conversation(), adapter_of(self.body.model, self.state), options

    def _answer(self, generation: Generation, by: AnsweredBy) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": completion.text, "refusal": None},
                "logprobs": None,
                "finish_reason": completion.finish_reason,
            }
            for index, completion in enumerate(generation.completions)
        ]
        return {
            **self.head.of("chat.completion", by),
            "choices": choices,
            "usage": usage_object(generation.usage.prompt_tokens, generation.usage.completion_tokens),
            "adapterhub": by.field,
        }

    def _chunk(self, by: AnsweredBy, choices: list[dict[str, Any]]) -> bytes:
        return event({**self.head.of("chat.completion.chunk", by), "choices": choices})


def _delta(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
