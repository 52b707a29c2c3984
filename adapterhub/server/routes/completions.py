"""`/v1/completions`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from adapterhub.server.generating.answers import answer
from adapterhub.server.generating.completions import CompletionCall
from adapterhub.server.generating.head import AnswerHead
from adapterhub.server.protocol.body import JsonBody, describe_answer, describe_body
from adapterhub.server.protocol.completions import CompletionRequest
from adapterhub.server.state import State

router = APIRouter(tags=["OpenAI"])

_EXAMPLE = {"model": "geography", "prompt": "The capital of France is", "max_tokens": 8}
_ANSWER = {
    "id": "cmpl-6f3a9c",
    "object": "text_completion",
    "created": 1767225600,
    "model": "geography",
    "system_fingerprint": "adapterhub-0.1.0-4204b2cf6525",
    "choices": [{"index": 0, "text": " Paris.", "logprobs": None, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
    "adapterhub": {"adapter": "geography", "version": 1, "route": None},
}


@router.post(
    "/v1/completions",
    openapi_extra=describe_body(CompletionRequest, _EXAMPLE),
    responses=describe_answer(_ANSWER),
)
async def create_completion(
    body: Annotated[CompletionRequest, Depends(JsonBody(CompletionRequest))],
    request: Request,
    state: State,
) -> Response:
    """Continues one or several texts."""
    call = CompletionCall(body, AnswerHead.begin("cmpl-", request, state), state)
    return await answer(call, body, state.config)
