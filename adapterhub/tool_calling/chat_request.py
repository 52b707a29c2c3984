"""A conversation with tools, and what its answer has to be, as arguments of the hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapterhub.engine.tokenizer import Tokenizer
from adapterhub.errors import InvalidRequestError
from adapterhub.tool_calling.call_format import HERMES, ToolCallFormat
from adapterhub.tool_calling.call_messages import fit_tool_calls, inline_tool_calls
from adapterhub.tool_calling.tool_choice import ToolChoice
from adapterhub.tool_calling.tool_prompt import prompt_tools


@dataclass(frozen=True)
class ChatRequest:
    """One request to the hub.

    Attributes:
        adapter: The adapter that answers.
        messages: The conversation.
        tools: The tools that the chat template renders; None if there are none, or it renders none.
        options: Further arguments of `AdapterHub.generate`.
        callable_tools: The tools that the answer may call.
        call_format: The format of tool calls in the conversation and the answer.
    """

    adapter: str
    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    callable_tools: Sequence[Mapping[str, Any]] = ()
    call_format: ToolCallFormat = HERMES

    @property
    def may_call_tools(self) -> bool:
        """Whether the answer may contain tool calls."""
        return bool(self.callable_tools)

    @classmethod
    def of(
        cls,
        adapter: str,
        messages: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any],
        *,
        tools: Sequence[Mapping[str, Any]],
        choice: ToolChoice,
        schema: Mapping[str, Any] | None,
        tokenizer: Tokenizer,
        detect_format: Callable[[], ToolCallFormat | None],
    ) -> ChatRequest:
        """Prepares a request: its grammar, and its tools and calls as the adapter's chat template takes them.

        Args:
            adapter: The adapter that answers.
            messages: The conversation; see `fit_tool_calls`.
            options: Further arguments of `AdapterHub.generate`.
            tools: All functions, in OpenAI's format.
            choice: Those that the answer may call.
            schema: The JSON Schema of an answer that calls none; None for any text.
            tokenizer: The base's.
            detect_format: Detects the format of the adapter's chat template; called where there are tools or calls.

        Raises:
            InvalidRequestError: No grammar can enforce a schema, or a tool is not JSON.
        """
        options = {**options, "schema": schema} if schema is not None and not choice.tools else options
        if not needs_call_format(tools, messages):
            return cls(adapter, messages, None, options)
        detected = detect_format()
        native = detected if detected and _can_write(detected, messages, schema) else None
        if choice.tools:
            options = {**options, "grammar": choice.grammar(tokenizer, native or HERMES, schema)}
        if native:
            fitted = fit_tool_calls(messages, native)
            return cls(adapter, fitted, prompt_tools(tools) or None, options, choice.tools, native)
        return cls(adapter, inline_tool_calls(messages, prompt_tools(tools)), None, options, choice.tools)


def needs_call_format(tools: Sequence[Mapping[str, Any]], messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a request has tools or calls, which are written as the adapter's chat template writes them.

    Args:
        tools: All functions.
        messages: The conversation.
    """
    return bool(tools) or any(each["role"] == "tool" or "tool_calls" in each for each in messages)


def _can_write(
    call_format: ToolCallFormat, messages: Sequence[Mapping[str, Any]], schema: Mapping[str, Any] | None
) -> bool:
    """Whether a template with this format can write the conversation and its answer."""
    if call_format.only_at_start and schema is not None:  # an object may begin like a call
        return False
    several = any(len(each.get("tool_calls", ())) > 1 for each in messages)
    return not (several and call_format.call_separator is None)


def response_schema(response_format: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The JSON Schema that OpenAI's `response_format` asks for; None if it asks for text.

    Args:
        response_format: `{"type": "json_schema", "json_schema": {"name", "schema"}}`, `{"type": "json_object"}` or
            `{"type": "text"}`; None is text.

    Raises:
        InvalidRequestError: It is none of these.
    """
    kind = response_format.get("type") if response_format else "text"
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema" or not response_format:
        raise InvalidRequestError(
            f"response_format has the type {kind!r:.100}.", hint="Known: text, json_object, json_schema."
        )
    described = response_format.get("json_schema")
    schema = described.get("schema") if isinstance(described, Mapping) else None
    if not isinstance(schema, Mapping):
        raise InvalidRequestError("response_format has no json_schema with a schema.")
    return schema
