"""Bodies and answers of vLLM's `/tokenize` and `/detokenize`."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from adapterhub.server.protocol.chat import MAX_MESSAGES, ChatMessage
from adapterhub.server.protocol.fields import ListOf
from adapterhub.server.protocol.tools import FunctionTool

_MAX_TOKENS = 1_000_000


class TokenizeRequest(BaseModel):
    """A text, or a conversation as a chat request has it."""

    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, json_schema_extra={"examples": [{"prompt": "Hello"}]}
    )

    model: str = Field("base", min_length=1, max_length=2000)
    """As in a chat request; its prompt format is used."""
    prompt: str | None = None
    """A text; this or `messages`."""
    messages: ListOf[ChatMessage] | None = Field(None, min_length=1, max_length=MAX_MESSAGES)
    """A conversation."""
    tools: ListOf[FunctionTool] | None = None
    """Tools of the conversation."""
    add_special_tokens: bool = True
    """Whether the tokenizer adds its own special tokens to a text; what a conversation has, its template writes."""
    add_generation_prompt: bool | None = None
    """Whether the template begins the assistant's message; true if not sent."""
    continue_final_message: bool | None = None
    """Whether the last message stays open, to be continued."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Further variables of the template."""
    return_token_strs: bool = False
    """Whether to return each token's text."""

    @model_validator(mode="after")
    def _has_one(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class TokenizeResponse(BaseModel):
    """The token ids of a prompt."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(BaseModel):
    """Token ids."""

    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, json_schema_extra={"examples": [{"tokens": [72, 105]}]}
    )

    model: str = Field("base", min_length=1, max_length=2000)
    """As in a chat request; all adapters have the base's tokenizer."""
    tokens: ListOf[Annotated[int, Field(ge=0, le=2**31 - 1)]] = Field(max_length=_MAX_TOKENS)
    """The token ids."""


class DetokenizeResponse(BaseModel):
    """The text of token ids."""

    prompt: str
