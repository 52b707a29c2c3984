"""Text templates: the built-in ones, and those that a program adds."""

from adapterhub.agent_tools.templates.collection import TemplateCollection
from adapterhub.agent_tools.templates.fields import FieldValue
from adapterhub.agent_tools.templates.template import Language, RenderedTemplate, Template

__all__ = ["FieldValue", "Language", "RenderedTemplate", "Template", "TemplateCollection"]
