"""LangChain tools with validated arguments and bounded results.

Arguments are bounded and closed to unknown names; LangChain raises a `ValidationError` for others, which agents show to
their model. Once arguments validate, no tool raises: an error is part of the result.
"""

from adapterhub.langchain.tools.formatting_tool import text_formatter
from adapterhub.langchain.tools.hub_tools import create_list_adapters_tool, create_route_request_tool
from adapterhub.langchain.tools.template_tools import create_template_tool, template_generator
from adapterhub.langchain.tools.toolkit import AdapterToolkit
from adapterhub.langchain.tools.validation_tool import content_validator

__all__ = [
    "AdapterToolkit",
    "content_validator",
    "create_list_adapters_tool",
    "create_route_request_tool",
    "create_template_tool",
    "template_generator",
    "text_formatter",
]
