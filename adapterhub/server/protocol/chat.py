"""The body of Chat Completions."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from adapterhub.requests.template_options import TEMPLATE_ARGUMENTS
from adapterhub.server.errors import FieldError
from adapterhub.server.protocol.fields import ListOf
from adapterhub.server.protocol.output_formats import FormattedBody
from adapterhub.server.protocol.tools import FunctionCall, FunctionTool, ToolChoiceOption, call_part

MAX_MESSAGES = 10_000
"""More would hold the interpreter for longer than other clients should wait; contexts do not take as many."""
_TEXT_OF_PART = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


class ContentPart(BaseModel):
    """A part of a message's content; only texts are supported."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    text: str | None = None
    refusal: str | None = None


class ChatMessage(BaseModel):
    """A message of a conversation. Further fields, such as those of an earlier answer, are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    """Who wrote it; `developer` is `system`."""
    content: str | ListOf[ContentPart] | None = None
    """A text, or parts of the type `text`; may be null in a message with tool calls."""
    name: str | None = None
    """Who wrote it, for chat templates that tell."""
    tool_calls: ListOf[FunctionCall] | None = None
    """The calls of an earlier answer."""
    tool_call_id: str | None = None
    """The call that a message of the role `tool` is the result of."""

    def converted(self, location: str) -> dict[str, Any]:
        """The message as the hub takes it; parts of its content are lines.

        Args:
            location: Where the message is, for the error.

        Raises:
            FieldError: A part of its content is no text.
        """
        content = self.content or ""
        if isinstance(content, list):
            content = "\n".join(_text(part, f"{location}.content.{at}") for at, part in enumerate(content))
        message: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": content,
        }
        if self.name:
            message["name"] = self.name
        if self.role == "assistant" and self.tool_calls:
            calls = [(call.id, call.function.name, call.function.arguments) for call in self.tool_calls]
            message["tool_calls"] = [call_part(*call) for call in calls]
        if self.role == "tool":
            message["tool_call_id"] = self.tool_call_id or ""
        return message


class ChatCompletionRequest(FormattedBody):
    """The body of `POST /v1/chat/completions`."""

    messages: ListOf[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    """The conversation."""
    tools: ListOf[FunctionTool] | None = None
    """The functions that the answer may call; an empty list is none."""
    tool_choice: ToolChoiceOption | None = None
    """Which of them it may or must call; `auto` if there are tools."""
    parallel_tool_calls: bool | None = None
    """Whether it may call several; true if not sent."""
    max_completion_tokens: int | None = None
    """`max_tokens` under its newer name, which wins."""
    logprobs: bool | None = None
    """Return the log-probability of each token of the answer."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """And those of this many most probable tokens; needs `logprobs`."""
    prompt_logprobs: int | None = Field(None, ge=0, le=20)
    """Return the log-probabilities of the prompt's tokens, and those of this many most probable ones; vLLM's."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Further variables of the adapter's chat template, such as `enable_thinking`; vLLM's."""
    continue_final_message: bool | None = None
    """The answer goes on with the last message; vLLM's."""
    add_generation_prompt: bool | None = None
    """Begin a message of the assistant; true if not sent, but for `continue_final_message`; vLLM's."""

    @property
    def has_calls(self) -> bool:
        """Whether the conversation has calls or their results."""
        return any(message.role == "tool" or message.tool_calls for message in self.messages)

    def conversation(self) -> list[dict[str, Any]]:
        """The messages as the hub takes them.

        Raises:
            FieldError: A part of a message's content is no text.
        """
        return [message.converted(f"messages.{at}") for at, message in enumerate(self.messages)]

    def options(self) -> dict[str, Any]:
        """The options of a call of the hub that were sent.

        Raises:
            FieldError: `top_logprobs` was sent without `logprobs`.
        """
        options = self.sampling_options()
        if self.max_completion_tokens is not None:
            options["max_tokens"] = self.max_completion_tokens
        if self.logprobs:
            options["logprobs"] = self.top_logprobs or 0
        elif self.top_logprobs:
            raise FieldError("top_logprobs needs logprobs=true.", "top_logprobs")
        template = {name: getattr(self, name) for name in TEMPLATE_ARGUMENTS}
        return options | {name: value for name, value in template.items() if value is not None}


def _text(part: ContentPart, location: str) -> str:
    field = _TEXT_OF_PART.get(part.type)
    text = getattr(part, field) if field else None
    if text is None:
        raise FieldError(
            f"A part of the type {part.type[:80]!r} is no text.",
            location,
            "unsupported_parameter",
            hint="Send parts of the type 'text'.",
        )
    return str(text)
