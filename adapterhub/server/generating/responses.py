"""The Responses API: the call of the hub, its response, and the events of a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from adapterhub.requests.generation import Generation
from adapterhub.requests.streaming import AsyncGenerationStream, CompletionChunk
from adapterhub.server.errors import error_object
from adapterhub.server.generating.answered_by import AnsweredBy
from adapterhub.server.generating.conversations import (
    AnswerParser,
    chat_request,
    copy_to_shadow,
    violations_of,
)
from adapterhub.server.generating.head import AnswerHead
from adapterhub.server.generating.helper_prompts import chat_adapter
from adapterhub.server.generating.logprobs import chat_logprobs
from adapterhub.server.generating.response_events import Event, ResponseEvents
from adapterhub.server.generating.response_items import to_messages
from adapterhub.server.generating.streaming import event
from adapterhub.server.generating.tools import functions_of, tool_choice_of
from adapterhub.server.protocol.response_answers import (
    IncompleteDetails,
    InputTokensDetails,
    ResponseFailure,
    ResponseObject,
    ResponseUsage,
)
from adapterhub.server.protocol.responses import JsonSchemaTextFormat, ResponseRequest, TextConfig
from adapterhub.server.state import ServerState
from adapterhub.tool_calling import ChatRequest


@dataclass(frozen=True)
class ResponseCall:
    """One response.

    Attributes:
        body: The request.
        head: Has the response's id.
        state: The server's parts.
    """

    body: ResponseRequest
    head: AnswerHead
    state: ServerState

    async def generate(self) -> tuple[dict[str, Any], AnsweredBy]:
        """The whole response, and who gave it; errors as of `AdapterHub.generate`."""
        hub, request = self.state.hub, await self._prepare()
        generation = await hub.agenerate(
            request.messages, request.adapter, tools=request.tools, **request.options
        )
        self._note(generation)
        by = AnsweredBy.of(generation)
        response = await hub._run_off_loop(self._whole, request, generation, by)
        return response.model_dump(), by

    async def start(self) -> tuple[AsyncGenerator[bytes], AnsweredBy]:
        """Queues the request: its events, and who answers; errors as of `AdapterHub.generate`."""
        request = await self._prepare()
        stream = self.state.hub.astream(
            request.messages, request.adapter, tools=request.tools, **request.options
        )
        await stream.start()
        return self._events(request, stream), AnsweredBy.of(stream)

    async def _events(self, request: ChatRequest, stream: AsyncGenerationStream) -> AsyncGenerator[bytes]:
        """The response as events; closing it aborts the answer.

        Args:
            request: As `start` gave it.
            stream: The same.
        """
        by, parser = AnsweredBy.of(stream), AnswerParser(request)
        told = ResponseEvents(self._begun(by))
        begun = False  # the first events wait for an output, until which an error has its own status
        async with aclosing(stream):
            try:
                async for chunk in stream.chunks(
                    self.body.tokens_per_chunk(self.state.config.stream_interval)
                ):
                    if not begun:
                        begun = True
                        yield _frames(told.start())
                    if frames := _frames(self._told(told, parser, chunk)):
                        yield frames
                ended = await self._ended(told.response, stream, parser, by)
                yield _frames(told.end(ended, is_cut=parser.is_cut))
            except Exception as error:
                if not begun:
                    raise
                message = error_object(error)["error"]["message"]
                yield _frames(told.end(failed(told.response, message)))

    async def _prepare(self) -> ChatRequest:
        return await self.state.hub._run_off_loop(self._request)

    def _note(self, generation: Generation) -> None:
        self.head.answered(generation)
        copy_to_shadow(self.state, self.body.model, generation, self._request)

    def _request(self, adapter: str | None = None) -> ChatRequest:
        """The request to the hub; `adapter` replaces the one that it names."""
        body, functions = self.body, functions_of(self.body.tools or ())
        messages = to_messages(body.input, body.instructions)
        return chat_request(
            self.state,
            adapter or chat_adapter(body.model, messages, self.state) or "base",
            messages,
            self.head.options(body, self.state),
            functions=functions,
            choice=tool_choice_of(functions, body.tool_choice, body.parallel_tool_calls),
            output_format=_output_format(body),
        )

    def _begun(self, by: AnsweredBy) -> ResponseObject:
        return new_response(self.body, self.head, by.model(self.state.base_model))

    def _whole(self, request: ChatRequest, generation: Generation, by: AnsweredBy) -> ResponseObject:
        told, parser = ResponseEvents(self._begun(by)), AnswerParser(request)
        (completion,) = generation.completions
        chunk = CompletionChunk(
            0, completion.text, completion.token_ids, completion.logprobs, completion.finish_reason
        )
        list(self._told(told, parser, chunk))
        said = by.field | violations_of(parser.calls, request)
        list(told.end(completed(told.response, generation, said), is_cut=parser.is_cut))
        return told.response

    def _told(self, told: ResponseEvents, parser: AnswerParser, chunk: CompletionChunk) -> Iterator[Event]:
        """What a chunk adds; log-probabilities come with their tokens, also where their text is held back."""
        logprobs = (chat_logprobs(chunk.logprobs, self.state.token_texts) or {}).get("content", [])
        parts = parser.push(chunk.text, ended=chunk.finish_reason is not None)
        for part in parts or ([""] if logprobs else []):
            yield from told.add(part, logprobs)
            logprobs = []

    async def _ended(
        self, response: ResponseObject, stream: AsyncGenerationStream, parser: AnswerParser, by: AnsweredBy
    ) -> ResponseObject:
        if stream.result is None:  # it was aborted
            return failed(response, "The answer was aborted.")
        self._note(stream.result)
        invalid = await self.state.hub._run_off_loop(violations_of, parser.calls, parser.request)
        return completed(response, stream.result, by.field | invalid)


def new_response(body: ResponseRequest, head: AnswerHead, model: str) -> ResponseObject:
    """The response before its answer.

    Args:
        body: The request, whose fields it repeats.
        head: Its id and time.
        model: Who answers.
    """
    return ResponseObject(
        id=head.id,
        created_at=head.created,
        model=model,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        metadata=body.metadata or {},
        parallel_tool_calls=body.parallel_tool_calls is not False,
        temperature=body.temperature,
        text=body.text or TextConfig(),
        tool_choice=body.tool_choice or "auto",
        tools=body.tools or [],
        top_logprobs=body.top_logprobs,
        top_p=body.top_p,
    )


def completed(response: ResponseObject, generation: Generation, answered: dict[str, Any]) -> ResponseObject:
    """The response at the end of its answer, but for its output.

    Args:
        response: The response so far.
        generation: The answer.
        answered: Who answered, and why.
    """
    usage, cut = generation.usage, generation.finish_reason == "length"
    return response.model_copy(
        update={
            "status": "incomplete" if cut else "completed",
            "incomplete_details": IncompleteDetails() if cut else None,
            "adapterhub": answered,
            "usage": ResponseUsage(
                input_tokens=usage.prompt_tokens,
                input_tokens_details=InputTokensDetails(cached_tokens=usage.cached_tokens),
                output_tokens=usage.completion_tokens,
                total_tokens=usage.total_tokens,
            ),
        }
    )


def failed(response: ResponseObject, message: str) -> ResponseObject:
    """The response whose answer failed.

    Args:
        response: The response so far.
        message: Why, for the client.
    """
    return response.model_copy(update={"status": "failed", "error": ResponseFailure(message=message)})


def _output_format(body: ResponseRequest) -> dict[str, Any]:
    text_format = body.text.format if body.text else None
    if isinstance(text_format, JsonSchemaTextFormat):
        return {"schema": text_format.schema_}
    wants_object = text_format is not None and text_format.type == "json_object"
    return {"schema": {"type": "object"}} if wants_object else {}


def _frames(events: Iterable[Event]) -> bytes:
    return b"".join(event(each, each["type"]) for each in events)
