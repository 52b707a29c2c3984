"""Conversion of a LangChain call to the arguments of the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import BaseMessage

from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.errors import InvalidRequestError
from adapterhub.hub import AdapterHub
from adapterhub.langchain.arguments import check_arguments
from adapterhub.langchain.message_conversion import convert_messages, fit_tool_calls, inline_tool_calls
from adapterhub.langchain.tool_call_format import HERMES, ToolCallFormat
from adapterhub.langchain.tool_call_format_detection import ToolCallFormats
from adapterhub.langchain.tool_choice import ToolChoice
from adapterhub.langchain.tool_prompt import prompt_tools
from adapterhub.langchain.tool_schema import functions_of, json_schema_of
from adapterhub.requests.preparing import names_adapter

_OPTIONS = frozenset({*SamplingParams.model_fields, "priority"} - {"n", "logprobs"})
_FORMAT = frozenset({"tools", "tool_choice", "parallel_tool_calls", "response_format"})
_NO_EFFECT = frozenset({"stream", "strict", "ls_structured_output_format"})
"""`stream` is handled by langchain-core; `strict` is always on."""


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
    def from_call(
        cls,
        hub: AdapterHub,
        adapter: str,
        messages: Sequence[BaseMessage],
        arguments: Mapping[str, Any],
        formats: ToolCallFormats,
    ) -> ChatRequest:
        """Converts a call.

        Args:
            hub: The hub that answers.
            adapter: The adapter that answers.
            messages: The conversation.
            arguments: The call's keyword arguments over the model's fields; None means not given.
            formats: The tool call formats of chat templates.

        Raises:
            InvalidRequestError: An argument is unknown or not valid, or a message has content that is not text.
            AdapterNotFoundError: There is no such adapter.
        """
        given = {name: value for name, value in arguments.items() if value not in (None, [])}
        check_arguments(given.keys() - _NO_EFFECT, _OPTIONS | _FORMAT, "a chat model", {"model", "adapter"})
        tools = functions_of(given.get("tools", ()))
        choice = ToolChoice.of(tools, given.get("tool_choice"), given.get("parallel_tool_calls", True))
        schema = response_schema(given.get("response_format"))
        options = {name: value for name, value in given.items() if name in _OPTIONS}
        if not choice.tools and schema:
            options["schema"] = schema
        converted = convert_messages(messages)
        if not tools and not any(each["role"] == "tool" or "tool_calls" in each for each in converted):
            return cls(adapter, converted, None, options)
        native = _native_format(hub, adapter, formats, converted, schema)
        if choice.tools:
            options["grammar"] = choice.grammar(hub.engine.tokenizer, native or HERMES, schema)
        if native:
            fitted = fit_tool_calls(converted, native)
            return cls(adapter, fitted, prompt_tools(tools) or None, options, choice.tools, native)
        return cls(adapter, inline_tool_calls(converted, prompt_tools(tools)), None, options, choice.tools)


def _native_format(
    hub: AdapterHub,
    adapter: str,
    formats: ToolCallFormats,
    messages: Sequence[Mapping[str, Any]],
    schema: Mapping[str, Any] | None,
) -> ToolCallFormat | None:
    """The tool call format of the adapter's chat template; None if it cannot render this conversation."""
    # With "auto" the router has not decided yet; most adapters use the base's template.
    style = hub.prompt_style(adapter if names_adapter(adapter) and adapter != "auto" else None)
    call_format = formats.of(style, hub.engine.tokenizer)
    if call_format is None or (call_format.only_at_start and schema):  # an object may begin like a call
        return None
    if call_format.call_separator is None and any(len(each.get("tool_calls", ())) > 1 for each in messages):
        return None
    return call_format


def response_schema(response_format: Any) -> Mapping[str, Any] | None:
    """The JSON Schema that a `response_format` asks for; None if it asks for text.

    Args:
        response_format: As OpenAI has it: `{"type": "json_schema", "json_schema": {"name", "schema"}}`,
            `{"type": "json_object"}` or `{"type": "text"}`; or what `json_schema_of` takes.

    Raises:
        InvalidRequestError: It is none of these.
    """
    if response_format is None:
        return None
    if isinstance(response_format, Mapping):
        kind = response_format.get("type")
        if kind == "text":
            return None
        if kind == "json_object" and "properties" not in response_format:
            return {"type": "object"}
        if kind == "json_schema":
            described = response_format.get("json_schema")
            schema = described.get("schema") if isinstance(described, Mapping) else None
            if not isinstance(schema, Mapping):
                raise InvalidRequestError("response_format has no json_schema with a schema.")
            return schema
    return json_schema_of(response_format)
