"""Conversion of a LangChain call to a request to the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage

from adapterhub import tool_calling
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.hub import AdapterHub
from adapterhub.langchain.arguments import check_arguments
from adapterhub.langchain.message_conversion import convert_messages
from adapterhub.langchain.tool_schema import functions_of, json_schema_of
from adapterhub.tool_calling import ChatRequest, ToolCallFormats, ToolChoice, needs_call_format

_OPTIONS = frozenset(
    {*SamplingParams.model_fields, "priority", "user"} - {"n", "logprobs", "prompt_logprobs"}
)
_FORMAT = frozenset({"tools", "tool_choice", "parallel_tool_calls", "response_format"})
_NO_EFFECT = frozenset({"stream", "strict", "ls_structured_output_format"})
"""`stream` is handled by langchain-core; `strict` is always on."""


def chat_request(
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
    converted = convert_messages(messages)
    if needs_call_format(tools, converted):  # which is that of the version that answers
        adapter = hub._choose_version(adapter, given.get("user"))
    # With "auto" the router has not decided yet; most adapters use the base's template.
    styled = None if adapter == "auto" else adapter
    return ChatRequest.of(
        adapter,
        converted,
        {name: value for name, value in given.items() if name in _OPTIONS},
        tools=tools,
        choice=ToolChoice.of(tools, given.get("tool_choice"), given.get("parallel_tool_calls", True)),
        schema=response_schema(given.get("response_format")),
        tokenizer=hub.engine.tokenizer,
        detect_format=lambda: formats.of(hub.prompt_style(styled), hub.engine.tokenizer),
    )


def response_schema(response_format: Any) -> Mapping[str, Any] | None:
    """The JSON Schema that a `response_format` asks for; None if it asks for text.

    Args:
        response_format: As OpenAI has it (`adapterhub.tool_calling.response_schema`), or what `json_schema_of` takes.

    Raises:
        InvalidRequestError: It is none of these.
    """
    if response_format is None:
        return None
    if isinstance(response_format, Mapping):
        kind = response_format.get("type")
        if kind in ("text", "json_schema") or (kind == "json_object" and "properties" not in response_format):
            return tool_calling.response_schema(response_format)
    return json_schema_of(response_format)
