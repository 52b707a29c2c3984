"""What a validation found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Violation:
    """Why a text does not pass a rule.

    Attributes:
        reason: A sentence without its full stop.
        offset: Index of the character where it was found; None if it concerns the whole text.
    """

    reason: str
    offset: int | None = None


@dataclass(frozen=True)
class RuleResult:
    """The outcome of one rule.

    Attributes:
        rule: The rule's name.
        passed: Whether the text passed.
        reason: Why it did not; empty if it passed.
        line: The violation's line, from 1; None if the text passed or the violation concerns all of it.
        column: The violation's character in that line, from 1.
    """

    rule: str
    passed: bool
    reason: str = ""
    line: int | None = None
    column: int | None = None

    @classmethod
    def of(cls, rule: str, text: str, violation: Violation | None) -> RuleResult:
        """Makes the result from a violation, or from None if there was none."""
        if violation is None:
            return cls(rule, True)
        if violation.offset is None:
            return cls(rule, False, violation.reason)
        line_start = text.rfind("\n", 0, violation.offset) + 1
        line = text.count("\n", 0, violation.offset) + 1
        return cls(rule, False, violation.reason, line, violation.offset - line_start + 1)

    def __str__(self) -> str:
        position = f" (line {self.line}, column {self.column})" if self.line else ""
        return f"{self.rule}: {self.reason}{position}" if self.reason else self.rule


@dataclass(frozen=True)
class ValidationReport:
    """The outcomes of all rules, in the order of the rules."""

    results: tuple[RuleResult, ...]

    @property
    def passed(self) -> bool:
        """Whether the text passed every rule."""
        return all(result.passed for result in self.results)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: `{"passed": bool, "results": [{"rule", "passed", "reason", "line", "column"}]}`."""
        return {"passed": self.passed, "results": [asdict(result) for result in self.results]}

    def __str__(self) -> str:
        failed = [str(result) for result in self.results if not result.passed]
        if not failed:
            return f"passed: {', '.join(result.rule for result in self.results)}"
        return "\n".join(
            [f"failed {len(failed)} of {len(self.results)} rules", *(f"- {line}" for line in failed)]
        )
