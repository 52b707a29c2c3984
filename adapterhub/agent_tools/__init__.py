"""What the agent tools compute: text formatting, templates, content rules. Knows neither LangChain nor a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.agent_tools.content_rules import Rule, RuleResult, ValidationReport, validate_text
    from adapterhub.agent_tools.templates import RenderedTemplate, Template, TemplateCollection
    from adapterhub.agent_tools.text_formatting import TextLayout, display_width, format_text

_EXPORTS = {
    "RenderedTemplate": "adapterhub.agent_tools.templates",
    "Rule": "adapterhub.agent_tools.content_rules",
    "RuleResult": "adapterhub.agent_tools.content_rules",
    "Template": "adapterhub.agent_tools.templates",
    "TemplateCollection": "adapterhub.agent_tools.templates",
    "TextLayout": "adapterhub.agent_tools.text_formatting",
    "ValidationReport": "adapterhub.agent_tools.content_rules",
    "display_width": "adapterhub.agent_tools.text_formatting",
    "format_text": "adapterhub.agent_tools.text_formatting",
    "validate_text": "adapterhub.agent_tools.content_rules",
}

__all__ = [
    "RenderedTemplate",
    "Rule",
    "RuleResult",
    "Template",
    "TemplateCollection",
    "TextLayout",
    "ValidationReport",
    "display_width",
    "format_text",
    "validate_text",
]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
