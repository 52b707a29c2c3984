"""The demo's figures: what is counted together."""

from __future__ import annotations

from typing import Any

from examples.demo.score import shares
from examples.demo.tasks import Record


def record(check: dict[str, Any], tools: int = 0) -> Record:
    made: Record = {"messages": [], "check": {"language": "en", **check}}
    if tools:
        made["tools"] = [{}] * tools
    return made


def test_right_answers_are_counted_by_language() -> None:
    records = [record({"language": language}) for language in ("en", "ru", "en", "en")]
    assert shares(records, [True, False, False, True]) == {
        "all": 1 / 2,
        "language en": 2 / 3,
        "language ru": 0,
    }


def test_calls_are_counted_by_the_number_of_tools_and_apart_from_results() -> None:
    records = [record({}, 1), record({}, 3), record({}, 3), record({"text": "According to ..."}, 3)]
    assert shares(records, [True, True, False, True]) == {
        "all": 3 / 4,
        "calls": 2 / 3,
        "calls, tools offered: 1": 1,
        "calls, tools offered: 3": 1 / 2,
        "results in words": 1,
    }
