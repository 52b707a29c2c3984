"""Answers of `/v1/responses`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from adapterhub.server.protocol.responses import (
    ResponseFunctionTool,
    ResponseToolChoice,
    TextConfig,
)

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(BaseModel):
    """A part of an answer that is text."""

    type: Literal["output_text"] = "output_text"
    text: str = ""
    annotations: list[Any] = []
    logprobs: list[dict[str, Any]] = []


class OutputMessage(BaseModel):
    """The text of an answer."""

    type: Literal["message"] = "message"
    id: str
    role: Literal["assistant"] = "assistant"
    status: ItemStatus = "in_progress"
    content: list[OutputText] = []


class OutputFunctionCall(BaseModel):
    """A call of an answer."""

    type: Literal["function_call"] = "function_call"
    id: str
    call_id: str
    name: str
    arguments: str = ""
    status: ItemStatus = "in_progress"


OutputItem = OutputMessage | OutputFunctionCall


class InputTokensDetails(BaseModel):
    """Tokens of the prompt by kind."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(BaseModel):
    """Tokens of the answer by kind."""

    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    """Tokens of prompt and answer."""

    input_tokens: int
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int


class IncompleteDetails(BaseModel):
    """Why an answer is incomplete."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseFailure(BaseModel):
    """Why an answer failed."""

    code: Literal["server_error"] = "server_error"
    message: str


class ResponseObject(BaseModel):
    """An answer, or what is known of it so far."""

    model_config = ConfigDict(serialize_by_alias=True)

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    model: str
    output: list[OutputItem] = []
    usage: ResponseUsage | None = None
    incomplete_details: IncompleteDetails | None = None
    error: ResponseFailure | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool = True
    previous_response_id: None = None
    temperature: float | None = None
    text: TextConfig = TextConfig()
    tool_choice: ResponseToolChoice = "auto"
    tools: list[ResponseFunctionTool] = []
    top_logprobs: int | None = None
    top_p: float | None = None
    truncation: Literal["disabled"] = "disabled"
    background: Literal[False] = False
    store: Literal[False] = False
    adapterhub: dict[str, Any] | None = None
    """The adapter that answered, its version, and the route."""
