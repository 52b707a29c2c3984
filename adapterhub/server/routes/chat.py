"""`/v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from adapterhub.server.generating.answers import answer
from adapterhub.server.generating.chat import ChatCall
from adapterhub.server.generating.head import AnswerHead
from adapterhub.server.protocol.body import JsonBody, describe_answer, describe_body
from adapterhub.server.protocol.chat import ChatCompletionRequest
from adapterhub.server.state import State

router = APIRouter(tags=["OpenAI"])

_EXAMPLE = {"model": "auto", "messages": [{"role": "user", "content": "Write a haiku about adapters."}]}
_ANSWER = {
    "id": "chatcmpl-6f3a9c",
    "object": "chat.completion",
    "created": 1767225600,
    "model": "haiku",
    "system_fingerprint": "adapterhub-0.1.0-4204b2cf6525",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Small weights ...", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 16, "completion_tokens": 17, "total_tokens": 33},
    "adapterhub": {
        "adapter": "haiku",
        "version": 2,
        "route": {"reason": "matched", "confidence": 0.97, "threshold": 0.5},
    },
}


@router.post(
    "/v1/chat/completions",
    openapi_extra=describe_body(ChatCompletionRequest, _EXAMPLE),
    responses=describe_answer(_ANSWER),
)
async def create_chat_completion(
    body: Annotated[ChatCompletionRequest, Depends(JsonBody(ChatCompletionRequest))],
    request: Request,
    state: State,
) -> Response:
    """Answers a conversation."""
    call = ChatCall(body, AnswerHead.begin("chatcmpl-", request, state), state)
    return await answer(call, body, state.config)
