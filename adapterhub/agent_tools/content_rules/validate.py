"""Checking a text by rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

from pydantic import Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from adapterhub.agent_tools.content_rules.clock import Clock, OutOfTimeError
from adapterhub.agent_tools.content_rules.data import Email, Json, JsonSchema, Regex, Url
from adapterhub.agent_tools.content_rules.prose import (
    HasHeadings,
    LanguageRule,
    Length,
    MarkdownTable,
    NoPlaceholders,
    NotEmpty,
    RequiredSections,
)
from adapterhub.agent_tools.content_rules.report import Fault, Report, Result
from adapterhub.agent_tools.content_rules.secrets import NoSecrets


class _Choice:
    """Writes the union as `anyOf`: the names tell the rules apart, and grammars cannot enforce `oneOf`."""

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        return {"anyOf": schema["oneOf"]}


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
    _Choice(),
]
"""Any rule; `rule` says which."""

MAX_CHARACTERS = 1 << 20
MAX_RULES = 20
SECONDS: Final = 0.06
"""Processor time for all rules together: the answer comes within 100 ms, what surrounds the rules included."""


def validate(text: str, rules: Sequence[Rule], seconds: float = SECONDS) -> Report:
    """Checks a text by each rule; one that cannot be checked in time has not passed, and says so.

    Args:
        text: At most `MAX_CHARACTERS` characters, for the time to be kept.
        rules: The rules, at most `MAX_RULES`.
        seconds: Processor time for all of them.
    """
    with Clock(seconds) as clock:
        return Report(tuple(Result.of(rule.rule, text, _fault(rule, text, clock)) for rule in rules))


def _fault(rule: Rule, text: str, clock: Clock) -> Fault | None:
    try:
        clock.check()
        return rule.check(text, clock)
    except OutOfTimeError:
        return Fault("not checked: the time limit was reached")
