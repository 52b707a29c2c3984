"""`/v1/responses`: OpenAI's Responses API, as far as it needs no store."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from adapterhub.server.generating.answers import answer
from adapterhub.server.generating.head import AnswerHead
from adapterhub.server.generating.responses import ResponseCall
from adapterhub.server.protocol.body import JsonBody, describe_answer, describe_body
from adapterhub.server.protocol.response_answers import OutputMessage, OutputText, ResponseObject
from adapterhub.server.protocol.responses import ResponseRequest
from adapterhub.server.state import State

router = APIRouter(tags=["OpenAI"])

_EXAMPLE = {"model": "auto", "input": "Write a haiku about adapters."}
_ANSWER = ResponseObject(
    id="resp_6f3a9c",
    created_at=1767225600,
    status="completed",
    model="haiku",
    output=[OutputMessage(id="msg_1c9d", status="completed", content=[OutputText(text="Small weights ...")])],
).model_dump()


@router.post(
    "/v1/responses",
    openapi_extra=describe_body(ResponseRequest, _EXAMPLE),
    responses=describe_answer(_ANSWER),
)
async def create_response(
    body: Annotated[ResponseRequest, Depends(JsonBody(ResponseRequest))],
    request: Request,
    state: State,
) -> Response:
    """Answers a question or a conversation of items; nothing is stored."""
    call = ResponseCall(body, AnswerHead.begin("resp_", request, state), state)
    return await answer(call, body, state.config)
