"""A conversation with tools and an output format, as a request to the hub; and the parts of its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapterhub.server.errors import FieldError
from adapterhub.server.state import ServerState
from adapterhub.tool_calling import (
    ChatRequest,
    ToolCall,
    ToolCallChunk,
    ToolCallParser,
    ToolChoice,
    argument_violations,
    parse_tool_calls,
)


def chat_request(
    state: ServerState,
    adapter: str,
    messages: Sequence[Mapping[str, Any]],
    options: Mapping[str, Any],
    *,
    functions: Sequence[Mapping[str, Any]],
    choice: ToolChoice,
    output_format: Mapping[str, Any],
) -> ChatRequest:
    """Prepares a request; call it off the event loop, for tools take long.

    Args:
        state: The server's.
        adapter: Who answers.
        messages: The conversation.
        options: Further options of the hub.
        functions: All tools.
        choice: Those that the answer may call.
        output_format: What an answer without calls has to match, as an option of the hub; empty for any text.

    Raises:
        FieldError: The answer may call tools, and the output format is no JSON Schema.
        InvalidRequestError: No grammar can enforce a schema.
    """
    schema = output_format.get("schema")
    if choice.tools and output_format and schema is None:
        raise FieldError(
            "An answer that may call tools can have a JSON Schema, and no other output format.",
            "structured_outputs",
            hint="Send tool_choice 'none', or no tools.",
        )
    engine, styled = state.hub.engine, None if adapter == "auto" else adapter
    return ChatRequest.of(
        adapter,
        messages,
        options if choice.tools else {**options, **output_format},
        tools=functions,
        choice=choice,
        schema=schema,
        tokenizer=engine.tokenizer,
        detect_format=lambda: state.call_formats.of(state.hub.prompt_style(styled), engine.tokenizer),
    )


@dataclass
class AnswerParser:
    """Separates text and calls of a streamed answer.

    Attributes:
        request: The request that is answered.
    """

    request: ChatRequest
    _parser: ToolCallParser = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._parser = ToolCallParser(self.request.call_format)

    @property
    def has_calls(self) -> bool:
        """Whether a call has begun."""
        return self._parser.count > 0

    def push(self, text: str) -> Sequence[str | ToolCallChunk]:
        """The parts that are certain after some more text."""
        if self.request.may_call_tools:
            return self._parser.push(text)
        return [text] if text else []

    def flush(self) -> Sequence[str]:
        """The rest, at the end of the answer.

        Raises:
            GenerationError: It ended within a call.
        """
        return self._parser.flush()


def split_answer(text: str, request: ChatRequest) -> tuple[str, list[ToolCall]]:
    """The text and the calls of a whole answer.

    Raises:
        GenerationError: It ended within a call.
    """
    return parse_tool_calls(text, request.call_format) if request.may_call_tools else (text, [])


def violations_of(calls: Sequence[ToolCall], request: ChatRequest) -> list[str]:
    """What the arguments of calls violate of their schemas, where no grammar enforces it; takes long."""
    return argument_violations(request.callable_tools, calls) if calls else []
