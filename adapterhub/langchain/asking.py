"""From a LangChain call to the arguments of the hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import BaseMessage
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from pydantic import BaseModel

from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.errors import InvalidRequestError
from adapterhub.hub import AdapterHub
from adapterhub.langchain.call_format import DEFAULT, CallFormat
from adapterhub.langchain.call_probe import CallFormats
from adapterhub.langchain.calls import ToolChoice
from adapterhub.langchain.messages import as_turns, in_form, in_words
from adapterhub.requests.preparing import names_adapter

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
        form: How calls are written, the conversation's and the answer's.
    """

    adapter: str
    turns: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    may_call: bool = False
    form: CallFormat = DEFAULT

    @classmethod
    def of(
        cls,
        hub: AdapterHub,
        adapter: str,
        messages: Sequence[BaseMessage],
        arguments: Mapping[str, Any],
        formats: CallFormats,
    ) -> Question:
        """Reads a call.

        Args:
            hub: Who will answer.
            adapter: Whose answer is wanted.
            messages: The conversation.
            arguments: The call's keyword arguments over the model's own; None means not given.
            formats: How chat templates write calls.

        Raises:
            InvalidRequestError: An argument is not known or not valid, or a message cannot be shown to a base.
            AdapterNotFoundError: There is no such adapter.
        """
        given = {name: value for name, value in arguments.items() if value not in (None, [])}
        unknown = given.keys() - _OPTIONS - _FORM - _NO_EFFECT
        if unknown:
            raise InvalidRequestError(
                f"{', '.join(sorted(unknown))}: no such argument of a chat model.",
                hint=f"Known: {', '.join(sorted(_OPTIONS | _FORM | {'model', 'adapter'}))}.",
            )
        tools = [convert_to_openai_tool(tool) for tool in given.get("tools", ())]
        choice = ToolChoice.of(tools, given.get("tool_choice"), given.get("parallel_tool_calls", True))
        answer = response_schema(given.get("response_format"))
        options = {name: value for name, value in given.items() if name in _OPTIONS}
        if not choice.tools and answer:
            options["schema"] = answer
        turns = as_turns(messages)
        if not tools and not any(turn["role"] == "tool" or "tool_calls" in turn for turn in turns):
            return cls(adapter, turns, None, options)
        form = _native(hub, adapter, formats, turns, answer)
        if choice.tools:
            options["grammar"] = choice.grammar(hub.engine.tokenizer, form or DEFAULT, answer)
        if form:
            return cls(adapter, in_form(turns, form), tools or None, options, bool(choice.tools), form)
        return cls(adapter, in_words(turns, tools), None, options, bool(choice.tools))


def _native(
    hub: AdapterHub,
    adapter: str,
    formats: CallFormats,
    turns: Sequence[Mapping[str, Any]],
    answer: Mapping[str, Any] | None,
) -> CallFormat | None:
    """How the adapter's chat template writes calls, unless it cannot write these."""
    # The router has not chosen yet; most adapters have the base's template.
    style = hub.prompt_style(adapter if names_adapter(adapter) and adapter != "auto" else None)
    form = formats.of(style, hub.engine.tokenizer)
    if form is None or (form.alone and answer):  # an object that answers may begin as a call does
        return None
    single = form.join is None
    return None if single and any(len(turn.get("tool_calls", ())) > 1 for turn in turns) else form


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
            schema = response_format.get("json_schema", {}).get("schema")
            if not isinstance(schema, Mapping):
                raise InvalidRequestError("response_format has no json_schema with a schema.")
            return schema
    return json_schema_of(response_format)


def json_schema_of(schema: Any) -> Mapping[str, Any]:
    """The JSON Schema of a pydantic model, a TypedDict, or a JSON Schema.

    Raises:
        InvalidRequestError: It is none of these.
    """
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return schema.model_json_schema()
    if isinstance(schema, Mapping) and "type" in schema and "function" not in schema:
        return schema
    try:
        return convert_to_json_schema(schema)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"No JSON Schema can be made of {schema!r}: {error}") from error
