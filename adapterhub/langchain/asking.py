"""From a LangChain call to the arguments of the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from pydantic import BaseModel

from adapterhub.errors import ConfigError
from adapterhub.hub import AdapterHub
from adapterhub.langchain.calls import ToolChoice
from adapterhub.langchain.messages import as_turns, in_words, knows_calls
from adapterhub.request_maker import names_adapter
from adapterhub.sampling import SamplingParams

_OPTIONS = frozenset({*SamplingParams.model_fields, "priority"} - {"n", "logprobs"})
_FORM = frozenset({"tools", "tool_choice", "parallel_tool_calls", "response_format"})
_NO_EFFECT = frozenset({"stream", "strict", "ls_structured_output_format"})
"""`stream` is read by langchain-core; `strict` is always on."""


@dataclass(frozen=True)
class Question:
    """One request.

    Attributes:
        adapter: Whose answer is wanted.
        turns: The conversation.
        tools: What the chat template shows as tools; None if it does not show any.
        options: Further arguments of `AdapterHub.generate`.
        may_call: Whether the answer may hold tool calls.
    """

    adapter: str
    turns: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    may_call: bool = False

    @classmethod
    def of(
        cls, hub: AdapterHub, adapter: str, messages: Sequence[BaseMessage], arguments: Mapping[str, Any]
    ) -> Question:
        """Reads a call.

        Args:
            hub: Who will answer.
            adapter: Whose answer is wanted.
            messages: The conversation.
            arguments: The call's keyword arguments over the model's own; None means not given.

        Raises:
            ConfigError: An argument is not known or not valid, or a message cannot be shown to a base.
            AdapterNotFoundError: There is no such adapter.
        """
        given = {name: value for name, value in arguments.items() if value not in (None, [])}
        unknown = given.keys() - _OPTIONS - _FORM - _NO_EFFECT
        if unknown:
            raise ConfigError(
                f"{', '.join(sorted(unknown))}: no such argument of a chat model.",
                hint=f"Known: {', '.join(sorted(_OPTIONS | _FORM | {'model', 'adapter'}))}.",
            )
        tools = [convert_to_openai_tool(tool) for tool in given.get("tools", ())]
        choice = ToolChoice.of(tools, given.get("tool_choice"), given.get("parallel_tool_calls", True))
        turns, shown = _shown(hub, adapter, messages, tools)
        options = {name: value for name, value in given.items() if name in _OPTIONS}
        form = _form(hub, choice, response_schema(given.get("response_format")))
        return cls(adapter, turns, shown, {**options, **form}, bool(choice.tools))


def _shown(
    hub: AdapterHub, adapter: str, messages: Sequence[BaseMessage], tools: Sequence[Mapping[str, Any]]
) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]] | None]:
    """The turns and the tools for a chat template; the tools are in the turns if the template knows none."""
    turns = as_turns(messages)
    if not tools and not any(turn["role"] == "tool" or "tool_calls" in turn for turn in turns):
        return turns, None
    # The router has not chosen yet; most adapters have the base's template.
    style = hub.prompt_style(adapter if names_adapter(adapter) and adapter != "auto" else None)
    return (turns, tools or None) if knows_calls(style) else (in_words(turns, tools), None)


def _form(hub: AdapterHub, choice: ToolChoice, answer: Mapping[str, Any] | None) -> dict[str, Any]:
    if choice.tools:
        return {"grammar": choice.grammar(hub.engine.tokenizer, answer)}
    return {"schema": answer} if answer else {}


def response_schema(response_format: Any) -> Mapping[str, Any] | None:
    """The JSON Schema that a `response_format` asks for; None if it asks for text.

    Args:
        response_format: As OpenAI has it: `{"type": "json_schema", "json_schema": {"name", "schema"}}`,
            `{"type": "json_object"}` or `{"type": "text"}`; or what `json_schema_of` takes.

    Raises:
        ConfigError: It is none of these.
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
            schema = response_format.get("json_schema", {}).get("schema")
            if not isinstance(schema, Mapping):
                raise ConfigError("response_format has no json_schema with a schema.")
            return schema
    return json_schema_of(response_format)


def json_schema_of(schema: Any) -> Mapping[str, Any]:
    """The JSON Schema of a pydantic model, a TypedDict, or a JSON Schema.

    Raises:
        ConfigError: It is none of these.
    """
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return schema.model_json_schema()
    if isinstance(schema, Mapping) and "type" in schema and "function" not in schema:
        return schema
    try:
        return convert_to_json_schema(schema)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"No JSON Schema can be made of {schema!r}: {error}") from error
