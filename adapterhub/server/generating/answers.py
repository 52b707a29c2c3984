"""Sends answers, whole or streamed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any, Protocol

from pydantic_core import to_json
from starlette.responses import Response

from adapterhub.server.config import ServerConfig
from adapterhub.server.generating.answered_by import AnsweredBy
from adapterhub.server.generating.streaming import EventStream
from adapterhub.server.protocol.sampling import GenerationBody


class Call(Protocol):
    """A request to one of OpenAI's APIs: chat, text completion or response."""

    async def generate(self) -> tuple[dict[str, Any], AnsweredBy]:
        """The whole answer, and who gave it; errors as of `AdapterHub.generate`."""
        ...

    async def start(self) -> tuple[AsyncGenerator[bytes], AnsweredBy]:
        """Queues the request: its events, and who answers; errors as of `AdapterHub.generate`."""
        ...


async def answer(call: Call, body: GenerationBody, config: ServerConfig) -> Response:
    """Answers a request, whole or streamed, as its body wants it.

    Args:
        call: The request.
        body: Its body.
        config: When a stream begins, and when it sends comments.
    """
    if not body.streams:
        whole, by = await call.generate()
        return _json_answer(whole, _answer_headers(by, body))
    events, by = await call.start()
    return await EventStream.begin(events, _answer_headers(by, body), config)


def _json_answer(answer: Mapping[str, Any], headers: Mapping[str, str]) -> Response:
    """An answer as JSON.

    Args:
        answer: The answer.
        headers: Further headers.
    """
    return Response(to_json(answer), headers=dict(headers), media_type="application/json")


def _answer_headers(by: AnsweredBy, body: GenerationBody) -> dict[str, str]:
    """The headers of an answer: who gave it, and the fields of the request that had no effect."""
    ignored = body.ignored_fields
    return by.headers | ({"x-adapterhub-ignored": ", ".join(ignored)} if ignored else {})
