"""Chat Completions: the call of the hub, its answer, and the chunks of a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from adapterhub.requests.generation import Generation
from adapterhub.requests.streaming import AsyncGenerationStream
from adapterhub.server.generating.answered_by import AnsweredBy
from adapterhub.server.generating.conversations import AnswerParser, chat_request, split_answer, violations_of
from adapterhub.server.generating.head import AnswerHead
from adapterhub.server.generating.model_names import adapter_of
from adapterhub.server.generating.output_formats import output_format_of
from adapterhub.server.generating.streaming import DONE, event
from adapterhub.server.generating.tool_calls import message_of, part_delta
from adapterhub.server.generating.tools import functions_of, tool_choice_of
from adapterhub.server.generating.usage import usage_object
from adapterhub.server.protocol.chat import ChatCompletionRequest
from adapterhub.server.state import ServerState
from adapterhub.tool_calling import ChatRequest


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
        by = AnsweredBy.of(generation)
        if request.may_call_tools:  # whose arguments are checked
            return await self.state.hub._run_off_loop(self._answer, generation, request, by), by
        return self._answer(generation, request, by), by

    async def start(self) -> tuple[ChatRequest, AsyncGenerationStream]:
        """Queues the request; errors as of `AdapterHub.generate`."""
        request = await self._prepare()
        stream = self.state.hub.astream(
            request.messages, request.adapter, tools=request.tools, **request.options
        )
        return request, await stream.start()

    async def events(self, request: ChatRequest, stream: AsyncGenerationStream) -> AsyncGenerator[bytes]:
        """The chunks of the answer as events; closing it aborts the answer.

        Args:
            request: As `start` gave it.
            stream: The same.
        """
        by = AnsweredBy.of(stream)
        parsers: dict[int, AnswerParser] = {}
        async with aclosing(stream):
            async for chunk in stream.chunks():
                index = chunk.index
                if index not in parsers:
                    parsers[index] = AnswerParser(request)
                    yield self._chunk(by, [_delta(index, {"role": "assistant", "content": ""})])
                for part in parsers[index].push(chunk.text, ended=chunk.finish_reason is not None):
                    yield self._chunk(by, [_delta(index, part_delta(part))])
                if chunk.finish_reason:
                    reason = "tool_calls" if parsers[index].has_calls else chunk.finish_reason
                    yield self._chunk(by, [_delta(index, {}, reason)])
            yield DONE

    async def _prepare(self) -> ChatRequest:
        if self.body.tools or self.body.has_calls:  # their grammar and their prompt take long
            return await self.state.hub._run_off_loop(self._request)
        return self._request()

    def _request(self) -> ChatRequest:
        body, functions = self.body, functions_of(tool.function for tool in self.body.tools or ())
        return chat_request(
            self.state,
            adapter_of(body.model, self.state) or "base",
            body.conversation(),
            body.options(),
            functions=functions,
            choice=tool_choice_of(functions, body.tool_choice, body.parallel_tool_calls),
            output_format=output_format_of(body),
        )

    def _answer(self, generation: Generation, request: ChatRequest, by: AnsweredBy) -> dict[str, Any]:
        split = [split_answer(completion.text, request) for completion in generation.completions]
        choices = [
            {
                "index": index,
                "message": message_of(text, calls),
                "logprobs": None,
                "finish_reason": "tool_calls" if calls else completion.finish_reason,
            }
            for index, (completion, (text, calls)) in enumerate(
                zip(generation.completions, split, strict=True)
            )
        ]
        invalid = violations_of([call for _, calls in split for call in calls], request)
        return {
            **self.head.of("chat.completion", by),
            "choices": choices,
            "usage": usage_object(generation.usage.prompt_tokens, generation.usage.completion_tokens),
            "adapterhub": by.field | ({"invalid_arguments": invalid} if invalid else {}),
        }

    def _chunk(self, by: AnsweredBy, choices: list[dict[str, Any]]) -> bytes:
        return event({**self.head.of("chat.completion.chunk", by), "choices": choices})


def _delta(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
