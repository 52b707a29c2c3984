"""The tool that validates a text against rules."""

from __future__ import annotations

from langchain_core.tools import tool
from pydantic import Field

from adapterhub.agent_tools.content_rules import MAX_CHARACTERS, MAX_RULES, Rule, validate_text
from adapterhub.langchain.tools.args_schema import Arguments
from adapterhub.langchain.tools.content_and_artifact import ContentAndArtifact


class ValidatorArguments(Arguments):
    """The text and the rules."""

    text: str = Field(max_length=MAX_CHARACTERS)
    """The text."""
    rules: list[Rule] = Field(min_length=1, max_length=MAX_RULES)
    """All must pass. Each names its `rule`."""


@tool(args_schema=ValidatorArguments, response_format="content_and_artifact")
def content_validator(text: str, rules: list[Rule]) -> ContentAndArtifact:
    """Validate a text against rules; list each violation."""
    report = validate_text(text, rules)
    return str(report), report.to_dict()
