"""All tools in one place, for an agent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Self

from langchain_core.tools import BaseTool, BaseToolkit
from pydantic import ConfigDict, InstanceOf, SkipValidation, model_validator

from adapterhub.agent_tools.templates import Templates
from adapterhub.hub import AdapterHub
from adapterhub.langchain.tools.formatter import text_formatter
from adapterhub.langchain.tools.hub_tools import adapters_tool, routing_tool
from adapterhub.langchain.tools.templates import template_tool
from adapterhub.langchain.tools.validator import content_validator

ToolName = Literal[
    "text_formatter", "template_generator", "content_validator", "list_adapters", "route_request"
]
_OF_A_HUB: dict[ToolName, Callable[[AdapterHub], BaseTool]] = {
    "list_adapters": adapters_tool,
    "route_request": routing_tool,
}


class AdapterToolkit(BaseToolkit):
    """The tools of adapterhub.

    Raises:
        ValidationError: An unknown tool is selected, or one that looks at a hub without `hub`.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, use_attribute_docstrings=True
    )

    hub: InstanceOf[AdapterHub] | None = None
    """The hub that `list_adapters` and `route_request` look at; without one they are left out."""
    selected: list[ToolName] | None = None
    """The tools, in this order; all if not given."""
    templates: SkipValidation[Templates] | None = None
    """What `template_generator` offers; the package's own templates if not given."""

    @model_validator(mode="after")
    def _hub_where_needed(self) -> Self:
        lacking = [name for name in self.selected or () if name in _OF_A_HUB and self.hub is None]
        if lacking:
            raise ValueError(f"{' and '.join(lacking)} look at a hub: give hub= too")
        return self

    def get_tools(self) -> list[BaseTool]:
        """The selected tools."""
        tools = [text_formatter, template_tool(self.templates), content_validator]
        if self.hub is not None:
            tools += [make(self.hub) for make in _OF_A_HUB.values()]
        known = {made.name: made for made in tools}
        return [known[name] for name in (self.selected or known)]
