"""Validating a text against rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

from pydantic import Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from adapterhub._deadline import Deadline, DeadlineExceededError
from adapterhub.agent_tools.content_rules.format_rules import Email, Json, JsonSchema, Regex, Url
from adapterhub.agent_tools.content_rules.report import RuleResult, ValidationReport, Violation
from adapterhub.agent_tools.content_rules.secret_rule import NoSecrets
from adapterhub.agent_tools.content_rules.text_rules import (
    HasHeadings,
    LanguageRule,
    Length,
    MarkdownTable,
    NoPlaceholders,
    NotEmpty,
    RequiredSections,
)


class _AnyOf:
    """Writes the union as `anyOf` in JSON Schema, which grammars enforce, without repeating the names of the rules."""

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        return {
            "anyOf": schema["oneOf"],
            "discriminator": {"propertyName": schema["discriminator"]["propertyName"]},
        }


Rule = Annotated[
    NotEmpty
    | Length
    | LanguageRule
    | HasHeadings
    | RequiredSections
    | MarkdownTable
    | NoPlaceholders
    | NoSecrets
    | Email
    | Url
    | Json
    | JsonSchema
    | Regex,
    Field(discriminator="rule"),
    _AnyOf(),
]
"""Any rule, discriminated by its field `rule`."""

MAX_CHARACTERS = 1 << 20
MAX_RULES = 20
MAX_SECONDS: Final = 1.0
"""Processor time for all rules together. One rule of each kind needs 0.4 s for `MAX_CHARACTERS` of prose, 8 ms for
20,000 characters, and a full garbage collection 0.3 s, so that none decides an outcome."""


def validate_text(text: str, rules: Sequence[Rule], max_seconds: float = MAX_SECONDS) -> ValidationReport:
    """Validates a text against each rule; a rule that was not checked in time fails with that reason.

    Args:
        text: At most `MAX_CHARACTERS` characters, so that the rules have enough time.
        rules: The rules, at most `MAX_RULES`.
        max_seconds: Processor time for all rules together.
    """
    deadline = Deadline(max_seconds)
    return ValidationReport(
        tuple(RuleResult.of(rule.rule, text, _violation(rule, text, deadline)) for rule in rules)
    )


def _violation(rule: Rule, text: str, deadline: Deadline) -> Violation | None:
    try:
        deadline.check()
        return rule.check(text, deadline)
    except DeadlineExceededError:
        return Violation("not checked: the time limit was reached")
