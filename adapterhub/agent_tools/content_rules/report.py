"""What a validation found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Fault:
    """Why a text does not pass a rule.

    Attributes:
        reason: A sentence without its full stop.
        at: The character where it is seen, counted from 0; None where it has no place.
    """

    reason: str
    at: int | None = None


@dataclass(frozen=True)
class Result:
    """What became of one rule.

    Attributes:
        rule: Its name.
        passed: Whether the text keeps to it.
        reason: Why not; empty if it passed.
        line: The line of the fault, counted from 1; None if it passed or the fault has no place.
        column: The character of that line, counted from 1.
    """

    rule: str
    passed: bool
    reason: str = ""
    line: int | None = None
    column: int | None = None

    @classmethod
    def of(cls, rule: str, text: str, fault: Fault | None) -> Result:
        """The result that a fault, or none, makes."""
        if fault is None:
            return cls(rule, True)
        if fault.at is None:
            return cls(rule, False, fault.reason)
        line_start = text.rfind("\n", 0, fault.at) + 1
        return cls(rule, False, fault.reason, text.count("\n", 0, fault.at) + 1, fault.at - line_start + 1)

    def __str__(self) -> str:
        place = f" (line {self.line}, column {self.column})" if self.line else ""
        return f"{self.rule}: {self.reason}{place}" if self.reason else self.rule


@dataclass(frozen=True)
class Report:
    """What became of all rules, in their order."""

    results: tuple[Result, ...]

    @property
    def passed(self) -> bool:
        """Whether the text keeps to every rule."""
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
