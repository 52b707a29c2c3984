"""Tools of a request: the functions that an answer may call, and which of them it may or must."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from adapterhub.server.protocol.fields import ListOf

Mode = Literal["none", "auto", "required"]


@dataclass(frozen=True)
class Chosen:
    """The functions that a `tool_choice` names.

    Attributes:
        mode: Whether one must be called.
        names: The functions.
        single: Whether there is one call at most.
    """

    mode: Literal["auto", "required"]
    names: tuple[str, ...]
    single: bool = False


class Function(BaseModel):
    """A function that an answer may call."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")
    """Letters, digits, `_`, `-` and `.`."""
    description: str | None = None
    """What it does; the model reads it."""
    parameters: dict[str, Any] | None = None
    """The JSON Schema of its arguments, an object. Arguments always match it."""
    strict: bool | None = None
    """No effect: it is always on."""


class FunctionTool(BaseModel):
    """A tool of Chat Completions."""

    type: Literal["function"]
    """`"function"`; custom tools, whose input is free text, are not supported."""
    function: Function


class FunctionName(BaseModel):
    """Names a function."""

    name: str


class NamedFunction(BaseModel):
    """The one function that the answer has to call."""

    type: Literal["function"]
    function: FunctionName

    def chosen(self) -> Chosen:
        """That function, which must be called."""
        return Chosen("required", (self.function.name,), single=True)


class AllowedTools(BaseModel):
    """The functions that the answer may call, of those that the prompt describes."""

    mode: Literal["auto", "required"]
    tools: ListOf[NamedFunction] = Field(min_length=1)


class AllowedToolsChoice(BaseModel):
    """Restricts the tools of one request, while the prompt stays the same."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools

    def chosen(self) -> Chosen:
        """Those functions."""
        return Chosen(self.allowed_tools.mode, tuple(tool.function.name for tool in self.allowed_tools.tools))


def kind_of_choice(choice: Any) -> str | None:
    """The kind of a `tool_choice`: `"mode"`, or its type."""
    if isinstance(choice, str):
        return "mode"
    kind = choice.get("type") if isinstance(choice, dict) else getattr(choice, "type", None)
    return kind if isinstance(kind, str) else None


CHOICE_KINDS = Discriminator(
    kind_of_choice,
    custom_error_type="tool_choice",
    custom_error_message="Expected none, auto, required, a function or allowed_tools",
)

ToolChoiceOption = Annotated[
    Annotated[Mode, Tag("mode")]
    | Annotated[NamedFunction, Tag("function")]
    | Annotated[AllowedToolsChoice, Tag("allowed_tools")],
    CHOICE_KINDS,
]
"""`tool_choice` of Chat Completions."""


class CalledFunction(BaseModel):
    """The function of a call."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)

    name: str
    arguments: str = "{}"
    """The text of a JSON object."""


class FunctionCall(BaseModel):
    """A call of an earlier answer."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


def call_part(call_id: str, name: str, arguments: str) -> dict[str, Any]:
    """A call of an earlier answer, as chat templates take it; arguments that are no object stay text."""
    return {
        "type": "function",
        "id": call_id,
        "function": {"name": name, "arguments": _object(arguments)},
    }


def _object(arguments: str) -> Any:
    try:
        read = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return read if isinstance(read, dict) else arguments
