"""`/v1/completions`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from adapterhub.server.generating.answered_by import AnsweredBy
from adapterhub.server.generating.answers import answer_headers, json_answer
from adapterhub.server.generating.completions import CompletionCall
from adapterhub.server.generating.head import AnswerHead
from adapterhub.server.generating.streaming import EventStream
from adapterhub.server.protocol.body import JsonBody, describe_body
from adapterhub.server.protocol.completions import CompletionRequest
from adapterhub.server.state import State

router = APIRouter(tags=["OpenAI"])

_EXAMPLE = {"model": "base", "prompt": "The capital of France is", "max_tokens": 8}


@router.post("/v1/completions", openapi_extra=describe_body(CompletionRequest, _EXAMPLE))
async def create_completion(
    body: Annotated[CompletionRequest, Depends(JsonBody(CompletionRequest))],
    request: Request,
    state: State,
) -> Response:
    """Continues one or several texts."""
    call = CompletionCall(body, AnswerHead.begin("cmpl-", request, state), state)
    if not body.streams:
        answer, by = await call.generate()
        return json_answer(answer, answer_headers(by, body))
    streams = await call.start()
    headers = answer_headers(AnsweredBy.of(streams[0]), body)
    return await EventStream.begin(call.events(streams), headers, state.config)
