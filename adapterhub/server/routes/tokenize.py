"""vLLM's `/tokenize` and `/detokenize`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from adapterhub.server.generating.model_names import adapter_of
from adapterhub.server.generating.tokenizing import prompt_tokens, text_of
from adapterhub.server.protocol.body import JsonBody, describe_body
from adapterhub.server.protocol.tokenize import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from adapterhub.server.state import State

router = APIRouter(tags=["tokenizer"])


@router.post("/tokenize", response_model_exclude_none=True, openapi_extra=describe_body(TokenizeRequest))
def tokenize(
    body: Annotated[TokenizeRequest, Depends(JsonBody(TokenizeRequest))], state: State
) -> TokenizeResponse:
    """Gives the token ids of a text, or of a conversation as a chat request sends it to the base (vLLM)."""
    tokens = prompt_tokens(body, state)
    texts = [state.token_texts[token] for token in tokens] if body.return_token_strs else None
    length = state.hub.engine.context_length
    return TokenizeResponse(count=len(tokens), max_model_len=length, tokens=tokens, token_strs=texts)


@router.post("/detokenize", openapi_extra=describe_body(DetokenizeRequest))
def detokenize(
    body: Annotated[DetokenizeRequest, Depends(JsonBody(DetokenizeRequest))], state: State
) -> DetokenizeResponse:
    """Gives the text of token ids (vLLM)."""
    adapter_of(body.model, state)
    return DetokenizeResponse(prompt=text_of(body.tokens, state))
