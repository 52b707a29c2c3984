"""Rules that a text is validated against, as guardrails for what a model wrote; every validation ends in time."""

from adapterhub.agent_tools.content_rules.report import RuleResult, ValidationReport, Violation
from adapterhub.agent_tools.content_rules.validation import MAX_CHARACTERS, MAX_RULES, Rule, validate_text

__all__ = [
    "MAX_CHARACTERS",
    "MAX_RULES",
    "Rule",
    "RuleResult",
    "ValidationReport",
    "Violation",
    "validate_text",
]
