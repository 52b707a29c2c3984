"""The Responses API: the call of the hub, its response, and the events of a stream."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from adapterhub.requests.generation import Generation
from adapterhub.requests.streaming import AsyncGenerationStream
from adapterhub.server.errors import error_object
from adapterhub.server.generating.answered_by import AnsweredBy
from adapterhub.server.generating.conversations import AnswerParser, chat_request, split_answer
from adapterhub.server.generating.model_names import adapter_of
from adapterhub.server.generating.response_events import Event, ResponseEvents
from adapterhub.server.generating.response_items import to_messages
from adapterhub.server.generating.streaming import event
from adapterhub.server.generating.tools import functions_of, tool_choice_of
from adapterhub.server.protocol.response_answers import (
    IncompleteDetails,
    ResponseFailure,
    ResponseObject,
    ResponseUsage,
)
from adapterhub.server.protocol.responses import JsonSchemaTextFormat, ResponseRequest
from adapterhub.server.state import ServerState
from adapterhub.tool_calling import ChatRequest


@dataclass(frozen=True)
class ResponseCall:
    """One response.

    Attributes:
        body: The request.
        state: The server's parts.
    """

    body: ResponseRequest
    state: ServerState

    async def generate(self) -> tuple[dict[str, Any], AnsweredBy]:
        """The whole response, and who gave it; errors as of `AdapterHub.generate`."""
        request = await self._prepare()
        generation = await self.state.hub.agenerate(
            request.messages, request.adapter, tools=request.tools, **request.options
        )
        by = AnsweredBy.of(generation)
        return await self.state.hub._run_off_loop(self._response, request, generation, by), by

    async def start(self) -> tuple[ChatRequest, AsyncGenerationStream]:
        """Queues the request; errors as of `AdapterHub.generate`."""
        request = await self._prepare()
        stream = self.state.hub.astream(
            request.messages, request.adapter, tools=request.tools, **request.options
        )
        return request, await stream.start()

    async def events(self, request: ChatRequest, stream: AsyncGenerationStream) -> AsyncGenerator[bytes]:
        """The response as events; closing it aborts the answer.

        Args:
            request: As `start` gave it.
            stream: The same.
        """
        by, parser = AnsweredBy.of(stream), AnswerParser(request)
        events = ResponseEvents(new_response(self.body, by.model(self.state.base_model)))
        begun = False
        async with aclosing(stream):
            try:
                async for chunk in stream.chunks():
                    # The first events wait for a first output, until which an error has its own status.
                    yield _frames([] if begun else events.start())
                    begun = True
                    yield _frames(e for part in parser.push(chunk.text) for e in events.add(part))
                ...
            except Exception as error:
                if not begun:
                    raise
                message = error_object(error)["error"]["message"]
                yield _frames(events.end(failed(events.response, message)))

def new_response(body: ResponseRequest, model: str) -> ResponseObject:
    """The response before its answer.

    Args:
        body: The request, whose fields it repeats.
        model: Who answers.
    """
    return ResponseObject(
        id=f"resp_{uuid4().hex}",
        created_at=int(time.time()),
        model=model,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        metadata=body.metadata or {},
        parallel_tool_calls=body.parallel_tool_calls is not False,
        temperature=body.temperature,
        text=body.text,
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
    text_format = body.text.format
    if isinstance(text_format, JsonSchemaTextFormat):
        return {"schema": text_format.schema_}
    return {"schema": {"type": "object"}} if text_format.type == "json_object" else {}
