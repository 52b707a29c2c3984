"""Structured output: what `with_structured_output` is made of."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any, Literal

from langchain_core.exceptions import OutputParserException
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.output_parsers.base import OutputParserLike
from langchain_core.output_parsers.openai_tools import JsonOutputKeyToolsParser, PydanticToolsParser
from langchain_core.output_parsers.transform import BaseCumulativeTransformOutputParser
from langchain_core.outputs import Generation
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import PrivateAttr
from typing_extensions import is_typeddict

from adapterhub.engine.output_format import OutputFormat
from adapterhub.errors import GenerationError, InvalidRequestError
from adapterhub.langchain.tool_schema import json_schema_of, openai_tool

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
    # langchain-core converts classes and JSON Schemas only.
    shown = schema if schema is None or isinstance(schema, type | Mapping) else json_schema_of(schema)
    return {"ls_structured_output_format": {"kwargs": {"method": method}, "schema": shown or {}}}


def function_name(schema: Any) -> str:
    """The function name of a schema.

    Raises:
        InvalidRequestError: No function can be made of it.
    """
    return str(openai_tool(schema)["function"]["name"])


class SchemaOutputParser(BaseCumulativeTransformOutputParser[Any]):
    """Parses JSON, and checks whole answers against all of their schema.

    Args:
        schema: A type that pydantic understands (the answer is one), a TypedDict or JSON Schema (the answer is a JSON
            value), or None for any JSON.
    """

    _format: OutputFormat | None = PrivateAttr(None)

    def __init__(self, schema: Any = None) -> None:
        super().__init__()
        if schema is not None:
            plain = isinstance(schema, Mapping) or is_typeddict(schema)
            self._format = OutputFormat.of(schema=json_schema_of(schema) if plain else schema)

    def parse_result(self, result: list[Generation], *, partial: bool = False) -> Any:
        """Parses an answer, or the beginning of one if `partial`.

        Raises:
            OutputParserException: The answer is not valid.
        """
        if partial or self._format is None:
            return JsonOutputParser().parse_result(result, partial=partial)
        try:
            return self._format.parse(result[0].text)
        except GenerationError as error:
            raise OutputParserException(str(error), llm_output=result[0].text) from error

    def parse(self, text: str) -> Any:
        """Parses an answer's text; see `parse_result`."""
        return self.parse_result([Generation(text=text)])


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
        return PydanticOutputParser(pydantic_object=schema) if typed else SchemaOutputParser(schema)
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
