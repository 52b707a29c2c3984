"""Rules for texts, and what became of them: whatever the text and the rules are, an answer comes soon."""

from adapterhub.agent_tools.content_rules.report import Report, Result
from adapterhub.agent_tools.content_rules.validate import MAX_CHARACTERS, MAX_RULES, Rule, validate

__all__ = ["MAX_CHARACTERS", "MAX_RULES", "Report", "Result", "Rule", "validate"]
