"""Texts with placeholders: the ones that come with the package, and those that a program adds."""

from adapterhub.agent_tools.templates.collection import Templates
from adapterhub.agent_tools.templates.template import FieldValue, Language, Rendered, Template

__all__ = ["FieldValue", "Language", "Rendered", "Template", "Templates"]
