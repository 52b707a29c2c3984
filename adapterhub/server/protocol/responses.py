"""Bodies of `/v1/responses`: OpenAI's Responses API, without what a server would have to store."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from adapterhub.server.protocol.tools import CHOICE_KINDS, Function, Mode


class TextPart(BaseModel):
    """A part of a message, or of a call's result, that is text."""

    type: Literal["input_text", "output_text", "text"]
    text: str


class RefusalPart(BaseModel):
    """An earlier answer's refusal."""

    type: Literal["refusal"]
    refusal: str


Content = str | list[Annotated[TextPart | RefusalPart, Field(discriminator="type")]]
"""Text, or parts that are text: images, audio and files are not supported."""


class MessageItem(BaseModel):
    """A message of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content


class FunctionCallItem(BaseModel):
    """A call of an earlier answer."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class FunctionCallOutputItem(BaseModel):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content


class ReasoningItem(BaseModel):
    """Reasoning of another model, which is left out."""

    type: Literal["reasoning"]


def _kind_of_item(item: Any) -> str | None:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return kind if isinstance(kind, str) else None


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(
        _kind_of_item,
        custom_error_type="input_item",
        custom_error_message="Expected a message, function_call, function_call_output or reasoning item; "
        "nothing is stored that an item could refer to",
    ),
]


class ResponseFunctionTool(Function):
    """A function that the answer may call."""

    type: Literal["function"]
    """`"function"`; no tool runs in this server."""


class ResponseNamedFunction(BaseModel):
    """The one function that the answer has to call."""

    type: Literal["function"]
    name: str


class ResponseAllowedTools(BaseModel):
    """Restricts the tools of one request, while the prompt stays the same."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[ResponseNamedFunction] = Field(min_length=1)


ResponseToolChoice = Annotated[
    Annotated[Mode, Tag("mode")]
    | Annotated[ResponseNamedFunction, Tag("function")]
    | Annotated[ResponseAllowedTools, Tag("allowed_tools")],
    CHOICE_KINDS,
]


class TextFormat(BaseModel):
    """Any text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object"]


class JsonSchemaTextFormat(BaseModel):
    """JSON of a schema."""

    model_config = ConfigDict(serialize_by_alias=True)

    type: Literal["json_schema"]
    name: str
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None
    """No effect: answers always match."""


class TextConfig(BaseModel):
    """The form of the answer's text."""

    format: Annotated[TextFormat | JsonSchemaTextFormat, Field(discriminator="type")] = TextFormat(
        type="text"
    )
    verbosity: Literal["low", "medium", "high"] | None = None
    """No effect."""
