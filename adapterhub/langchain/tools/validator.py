"""The tool that checks a text by rules."""

from __future__ import annotations

from typing import Any

from langchain_core.tools import tool
from pydantic import Field

from adapterhub.agent_tools.content_rules import MAX_CHARACTERS, MAX_RULES, Rule, validate
from adapterhub.langchain.tools.arguments import Arguments


class ValidatorArguments(Arguments):
    """What to check, and by which rules."""

    text: str = Field(max_length=MAX_CHARACTERS)
    """The text."""
    rules: list[Rule] = Field(min_length=1, max_length=MAX_RULES)
    """The rules; the text passes if it keeps to all of them."""


@tool(args_schema=ValidatorArguments, response_format="content_and_artifact")
def content_validator(text: str, rules: list[Rule]) -> tuple[str, dict[str, Any]]:
    """Check a text by rules (length, language, sections, JSON, addresses, secrets...); say what is wrong and where."""
    report = validate(text, rules)
    return str(report), report.to_dict()
