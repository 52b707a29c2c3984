"""Structured output: what `with_structured_output` is made of."""

from __future__ import annotations

from operator import itemgetter
from typing import Any, Literal

from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.base import OutputParserLike
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_openai_tool
from langchain_core.utils.pydantic import is_basemodel_subclass

from adapterhub.errors import InvalidRequestError
from adapterhub.langchain.chat_request import json_schema_of

Method = Literal["json_schema", "function_calling", "json_mode"]


def response_format(schema: Any) -> dict[str, Any]:
    """The `response_format` for a schema, or for any JSON object if there is none.

    Raises:
        InvalidRequestError: No JSON Schema can be made of it.
    """
    if schema is None:
        return {"type": "json_object"}
    json_schema = json_schema_of(schema)
    name = json_schema.get("title") or getattr(schema, "__name__", "answer")
    return {"type": "json_schema", "json_schema": {"name": name, "schema": json_schema}}


def tracing_format(schema: Any, method: Method) -> dict[str, Any]:
    """Describes the output format to callbacks, by langchain-core's convention."""
    return {"ls_structured_output_format": {"kwargs": {"method": method}, "schema": schema or {}}}


def function_name(schema: Any) -> str:
    """The function name of a schema."""
    return str(convert_to_openai_tool(schema)["function"]["name"])


def create_parser(schema: Any, method: Method) -> OutputParserLike[Any]:
    """Creates the output parser of a method.

    Raises:
        InvalidRequestError: There is no such method, or it needs a schema.
    """
    if method not in ("json_schema", "function_calling", "json_mode"):
        raise InvalidRequestError(
            f"There is no method {method!r}.", hint="Known: json_schema, function_calling, json_mode."
        )
    if schema is None and method != "json_mode":
        raise InvalidRequestError(
            f"The method {method!r} needs a schema.", hint="Only json_mode works without one."
        )
    typed = isinstance(schema, type) and is_basemodel_subclass(schema)
    if method != "function_calling":
        return PydanticOutputParser(pydantic_object=schema) if typed else JsonOutputParser()
    if typed:
        return PydanticToolsParser(tools=[schema], first_tool_only=True)
    return JsonOutputKeyToolsParser(key_name=function_name(schema), first_tool_only=True)


def chain_parser(
    model: Runnable[Any, Any], parser: OutputParserLike[Any], include_raw: bool
) -> Runnable[Any, Any]:
    """Chains a model and its parser; with `include_raw` the result maps `raw`, `parsed` and `parsing_error`."""
    if not include_raw:
        return model | parser
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks([failed], exception_key="parsing_error")
