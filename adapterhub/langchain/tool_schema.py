"""The JSON Schemas of tools and of structured output, as their authors wrote them.

LangChain's own converters follow references and drop what they do not know: the schema of a recursive model loses its
recursion, one without a `type` its content.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

from langchain_core.tools import BaseTool
from langchain_core.tools.base import create_schema_from_function
from langchain_core.utils.function_calling import convert_to_json_schema, convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel
from pydantic.errors import PydanticUserError
from typing_extensions import is_typeddict

from adapterhub.engine.output_format import type_adapter
from adapterhub.errors import InvalidRequestError
from adapterhub.tool_calling.tool_choice import arguments_schema

Function = dict[str, Any]
_SCHEMA_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_NO_SCHEMAS = frozenset({"const", "default", "enum", "examples"})
_MAPS = frozenset({"properties", "$defs", "definitions"})


def functions_of(tools: Iterable[Any]) -> list[Function]:
    """Tools as functions in OpenAI's format; see `openai_tool`."""
    return [openai_tool(tool) for tool in tools]


def openai_tool(tool: Any) -> Function:
    """A tool as a function in OpenAI's format, with the unchanged schema of its arguments.

    Args:
        tool: A tool, function, pydantic model, TypedDict, or a dict that is one of these in the format of OpenAI or
            Anthropic, or a titled JSON Schema.

    Raises:
        InvalidRequestError: It is none of these, or a tool that only its provider can run, such as a web search.
    """
    kind = tool.get("type", "function") if isinstance(tool, Mapping) else "function"
    if kind not in ("function", "custom") and kind not in _SCHEMA_TYPES:
        raise InvalidRequestError(
            f"A tool of the type {kind!r} runs at the provider that offers it; here none does.",
            hint="Bind a tool that runs in this program: a function, a LangChain tool or a JSON Schema.",
        )
    try:
        converted = convert_to_openai_tool(tool)
        if not isinstance(converted["function"]["name"], str):
            raise TypeError("its name is no text")
        parameters = _own_parameters(tool)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidRequestError(
            f"A tool of the type {type(tool).__name__} cannot be converted to a function with a name.",
            hint="Bind a function, a LangChain tool, a pydantic model, or a JSON Schema with title and description.",
        ) from error
    if parameters is None:
        return converted
    return {**converted, "function": {**converted["function"], "parameters": parameters}}


def json_schema_of(schema: Any) -> Mapping[str, Any]:
    """The JSON Schema of a type, unchanged.

    Args:
        schema: A pydantic model, TypedDict, or another type that pydantic understands, such as `list[int]`; a tool or
            function, for its arguments; or a JSON Schema.

    Raises:
        InvalidRequestError: It is none of these.
    """
    try:
        if isinstance(schema, Mapping):
            return _unwrapped(schema)
        if isinstance(schema, BaseTool) or (callable(schema) and not _is_type(schema)):
            return arguments_schema(openai_tool(schema)["function"])
        return _type_schema(schema)
    except InvalidRequestError:
        raise
    except (PydanticUserError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise InvalidRequestError(
            f"No JSON Schema can be made of {reprlib.repr(schema)}: {reason}"
        ) from error


def _type_schema(schema: Any) -> dict[str, Any]:
    try:
        if isinstance(schema, type) and is_basemodel_subclass(schema):
            return _model_schema(schema)
        return type_adapter(schema).json_schema()
    except PydanticUserError:
        if not is_typeddict(schema):
            raise
        return convert_to_json_schema(schema)  # pydantic refuses `typing.TypedDict` before Python 3.12


def _model_schema(model: Any) -> dict[str, Any]:
    schema: dict[str, Any] = model.model_json_schema() if issubclass(model, BaseModel) else model.schema()
    return schema


def _own_parameters(tool: Any) -> dict[str, Any] | None:
    """The schema of a tool's arguments; None where LangChain's conversion is right."""
    if isinstance(tool, BaseTool):
        tool = tool.tool_call_schema
    elif isinstance(tool, Mapping):
        is_schema = "title" in tool and not tool.keys() & {"name", "function"}
        return (
            {key: value for key, value in tool.items() if key not in ("title", "description")}
            if is_schema
            else None
        )
    elif callable(tool) and not isinstance(tool, type):
        tool = create_schema_from_function(
            tool.__name__, tool, filter_args=(), parse_docstring=True, error_on_invalid_docstring=False
        )
    if isinstance(tool, type) and is_basemodel_subclass(tool):
        schema = _untitled(_model_schema(tool))
        return {key: value for key, value in schema.items() if key != "description"}
    return None


def _untitled(node: Any) -> Any:
    """Without the titles that pydantic makes of the names: they cost a prompt tokens and say nothing."""
    if isinstance(node, list):
        return [_untitled(part) for part in node]
    if not isinstance(node, dict):
        return node
    return {
        key: {name: _untitled(part) for name, part in value.items()}
        if key in _MAPS
        else value
        if key in _NO_SCHEMAS
        else _untitled(value)
        for key, value in node.items()
        if key != "title"
    }


def _unwrapped(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A JSON Schema, or that within a function of OpenAI or Anthropic."""
    function = schema.get("function") if isinstance(schema.get("function"), Mapping) else schema
    if isinstance(function, Mapping) and isinstance(function.get("name"), str):
        for key in ("parameters", "input_schema"):
            if isinstance(function.get(key), Mapping):
                return {"title": function["name"], **function[key]}
    return schema


def _is_type(schema: Any) -> bool:
    return isinstance(schema, type) or hasattr(schema, "__origin__")
