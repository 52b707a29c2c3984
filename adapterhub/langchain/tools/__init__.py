"""Tools that an agent can trust: arguments are checked, and whatever they are, a result comes back.

Arguments are closed to unknown names and bounded; LangChain raises a `ValidationError` for others, which agents show to
their model. Once arguments validate, no tool raises: what went wrong is part of the result.
"""

from adapterhub.langchain.tools.formatter import text_formatter
from adapterhub.langchain.tools.hub_tools import adapters_tool, routing_tool
from adapterhub.langchain.tools.templates import template_generator, template_tool
from adapterhub.langchain.tools.toolkit import AdapterToolkit
from adapterhub.langchain.tools.validator import content_validator

__all__ = [
    "AdapterToolkit",
    "adapters_tool",
    "content_validator",
    "routing_tool",
    "template_generator",
    "template_tool",
    "text_formatter",
]
