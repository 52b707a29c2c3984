"""The toolkit: all tools of adapterhub for an agent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

from langchain_core.tools import BaseTool, BaseToolkit
from pydantic import ConfigDict, InstanceOf, SkipValidation, model_validator

from adapterhub.agent_tools.templates import TemplateCollection
from adapterhub.hub import AdapterHub
from adapterhub.langchain.tools.formatting_tool import text_formatter
from adapterhub.langchain.tools.hub_tools import create_list_adapters_tool, create_route_request_tool
from adapterhub.langchain.tools.template_tools import create_template_tool
from adapterhub.langchain.tools.validation_tool import content_validator

ToolName = Literal[
    "text_formatter", "template_generator", "content_validator", "list_adapters", "route_request"
]
_HUB_TOOLS: dict[ToolName, Callable[[AdapterHub], BaseTool]] = {
    "list_adapters": create_list_adapters_tool,
    "route_request": create_route_request_tool,
}


class AdapterToolkit(BaseToolkit):
    """The tools of adapterhub.

    Raises:
        ValidationError: An unknown tool is selected, or one that needs a hub without `hub`.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, use_attribute_docstrings=True
    )

    hub: InstanceOf[AdapterHub] | None = None
    """The hub of `list_adapters` and `route_request`; without one they are left out."""
    selected: list[ToolName] | None = None
    """The tools, in this order; all if not given."""
    templates: SkipValidation[TemplateCollection] | None = None
    """The templates of `template_generator`; the built-in ones if not given."""

    @model_validator(mode="after")
    def _check_hub(self) -> Self:
        need_hub = [name for name in self.selected or () if name in _HUB_TOOLS and self.hub is None]
        if need_hub:
            raise ValueError(f"{' and '.join(need_hub)}: needs hub=")
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy of everything but the hub, which holds a model and threads."""
        memo = {} if memo is None else memo
        memo[id(self.hub)] = self.hub
        return super().__deepcopy__(memo)

    def get_tools(self) -> list[BaseTool]:
        """The selected tools."""
        tools = [text_formatter, create_template_tool(self.templates), content_validator]
        if self.hub is not None:
            tools += [create(self.hub) for create in _HUB_TOOLS.values()]
        by_name = {tool.name: tool for tool in tools}
        return [by_name[name] for name in (self.selected or by_name)]
