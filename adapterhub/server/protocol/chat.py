"""The body of Chat Completions."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from adapterhub.server.errors import FieldError
from adapterhub.server.protocol.sampling import GenerationBody

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
    content: str | list[ContentPart] | None = None
    """A text, or parts of the type `text`; may be null in a message with tool calls."""
    name: str | None = None
    """Who wrote it, for chat templates that tell."""

    def text(self, location: str) -> str:
        """The content as one text, its parts as lines.

        Args:
            location: Where the content is, for the error.

        Raises:
            FieldError: A part is no text.
        """
        if not isinstance(self.content, list):
            return self.content or ""
        return "\n".join(_text(part, f"{location}.{at}") for at, part in enumerate(self.content))


class ChatCompletionRequest(GenerationBody):
    """The body of `POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    """The conversation."""
    max_completion_tokens: int | None = None
    """`max_tokens` under its newer name, which wins."""
    logprobs: bool | None = None
    """Return the log-probability of each token of the answer."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """And those of this many most probable tokens; needs `logprobs`."""

    def conversation(self) -> list[dict[str, Any]]:
        """The messages as the hub takes them.

        Raises:
            FieldError: A part of a message's content is no text.
        """
        return [
            {
                "role": "system" if message.role == "developer" else message.role,
                "content": message.text(f"messages.{at}.content"),
            }
            for at, message in enumerate(self.messages)
        ]

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
        return options


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
