"""Hostile texts, patterns and schemas: validation ends at its deadline, and nothing is fetched."""

import sys
import time

import pytest
from pydantic import TypeAdapter

from adapterhub._deadline import Deadline
from adapterhub.agent_tools.content_rules import MAX_CHARACTERS, Rule, validate_text
from adapterhub.agent_tools.content_rules.base_rule import BaseRule
from adapterhub.agent_tools.content_rules.report import Violation
from tests.timing import least_seconds

ALL_RULES = TypeAdapter(list[Rule]).validate_python(
    [
        {"rule": "not_empty"},
        {"rule": "length", "unit": "words"},
        {"rule": "language", "language": "ru"},
        {"rule": "has_headings"},
        {"rule": "required_sections", "sections": ["A"]},
        {"rule": "markdown_table"},
        {"rule": "no_placeholders"},
        {"rule": "no_secrets"},
        {"rule": "email"},
        {"rule": "url"},
        {"rule": "json"},
        {"rule": "json_schema", "json_schema": {"type": "object"}},
        {"rule": "regex", "pattern": "x{3}$"},
    ]
)
SIGNS = [
    "a",
    "я ",
    "\x00",
    "\n",
    "[",
    '{"a":',
    "[1],",
    "a@a.",
    "http://",
    "a|b\n-|-\n",
    "# ",
    "# **a\n",
    "# " + "![" * 240 + "\n",
    "a\n",
    "- ",
    "[Name ",
    "[A-",
    "[A, ",
    "<!--\n",
    "http://a/'",
    "```\n",
    "\\",
    "<your ",
    "{{",
    "eyJ",
    "\ud800",
]


LIMIT = 0.06
"""Less than the default, which has room for a full garbage collection that no text causes."""


def timed(text: str, rules):
    """The report, and the processor time that it took."""
    return least_seconds(lambda: validate_text(text, rules, LIMIT), enough=0.1)


def one(**rule):
    return TypeAdapter(list[Rule]).validate_python([rule])


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.rule)
def test_a_megabyte_of_anything(rule):
    slow = {}
    for sign in SIGNS:
        _, seconds = timed((sign * MAX_CHARACTERS)[:MAX_CHARACTERS], [rule])
        if seconds > 0.1:
            slow[sign] = round(seconds, 3)
    assert not slow


@pytest.mark.parametrize("sign", ["a ", "a|b\n-|-\n", "a@"])
def test_all_rules_share_the_time(sign: str):
    _, seconds = timed((sign * MAX_CHARACTERS)[:MAX_CHARACTERS], ALL_RULES)
    assert seconds < 0.1


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$", "(a|aa)+$", "(a?){1000}a{10}", "((a{100}){100}){100}", "(a{1,99999999})b", "(?R)?a(?R)?b",
        "a*" * 200 + "b", "(" * 16 + "a" + "{2})" * 16, "(((((a{7}){7}){7}){7}){7})", "(?:" * 120 + "a" + ")" * 120,
        "((((((a{5}){5}){5}){5}){5}){6})",
        "(?:foo){e<=9}", "a{ 100 }" * 9,
    ],
)  # fmt: skip
def test_a_catastrophic_pattern(pattern: str):
    report, seconds = timed("a" * 30_000 + "!", one(rule="regex", pattern=pattern))
    assert seconds < 0.1
    if pattern == "(a+)+$":
        assert report.results[0].reason == "not checked: the time limit was reached"


def test_deeply_nested_json_and_huge_numbers():
    report, seconds = timed("[" * 100_000 + "]" * 100_000, one(rule="json"))
    assert report.results[0].reason == "not JSON that can be read: it is nested too deeply"
    assert seconds < 0.1
    report, seconds = timed("9" * MAX_CHARACTERS, one(rule="json"))
    assert report.results[0].reason == "not JSON that can be read: a number has more than 4300 digits"
    assert seconds < 0.1
    nested = "[" * 150 + "]" * 150
    assert (
        "deeper than 100" in validate_text(nested, one(rule="json_schema", json_schema={})).results[0].reason
    )


def test_a_huge_number_where_pythons_own_limit_is_lifted():
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        report, seconds = timed("9" * MAX_CHARACTERS, one(rule="json"))
    finally:
        sys.set_int_max_str_digits(before)
    assert report.results[0].reason == "not JSON that can be read: a number has more than 4300 digits"
    assert seconds < 0.1


def exponential() -> dict:
    parts = {f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)}
    return {"$ref": "#/$defs/a0", "$defs": {**parts, "a40": False}}


@pytest.mark.parametrize(
    ("schema", "text", "reason"),
    [
        (exponential(), "1", "time limit"),
        ({"$ref": "#"}, "1", ""),
        ({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}, "1", ""),
        ({"pattern": "(a+)+$"}, '"' + "a" * 5000 + '!"', "time limit"),
        ({"patternProperties": {"(a+)+$": {}}}, '{"' + "a" * 5000 + '!": 1}', "time limit"),
        ({"pattern": "((a{100}){100}){100}"}, '"a"', "too large counted repetitions"),
        ({"pattern": "(?:" * 120 + "a" + ")" * 120}, '"b"', "does not match"),
        ({"uniqueItems": True}, "[" + ",".join(f'{{"a": {n}}}' for n in range(20_000)) + "]", ""),
        ({"items": {"type": "string"}}, "[" + "1," * 300_000 + "1]", ""),
        ({"multipleOf": 1e-300}, "1e300", ""),
        ({"multipleOf": 0.1}, "1" * 4000, ""),
        ({"minimum": 1}, "1e999", ""),
        ({"const": 1}, "1" * 4000, ""),
        ({"enum": list(range(9000))}, "-1", ""),
        ({"$ref": "file:///etc/passwd"}, "1", "refers to file:///etc/passwd, which is not in it"),
        (
            {"$ref": "https://example.com/s.json"},
            "1",
            "refers to https://example.com/s.json, which is not in it",
        ),
        ({"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer"}, "1", ""),
        ({"unevaluatedProperties": False, "patternProperties": {"(a+)+$": {}}}, "{}", "is not checked"),
    ],
)
def test_a_hostile_schema(schema: dict, text: str, reason: str):
    report, seconds = timed(text, one(rule="json_schema", json_schema=schema))
    assert seconds < 0.1
    assert reason in report.results[0].reason


class Slow(BaseRule):
    rule: str = "slow"

    def check(self, text: str, deadline: Deadline) -> Violation | None:
        end = time.thread_time() + 0.7
        while time.thread_time() < end:
            pass
        return None


def test_the_default_has_room_for_a_full_garbage_collection():
    report = validate_text("{}", [Slow(), *one(rule="json")])  # type: ignore[list-item]
    assert report.passed
    again = validate_text("{}", [Slow(), Slow(), *one(rule="json")])  # type: ignore[list-item]
    assert again.results[-1].reason == "not checked: the time limit was reached"


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch):
    fetched = []  # an error raised here would be taken for a reference that leads nowhere
    monkeypatch.setattr("socket.socket.connect", lambda *to: fetched.append(to))
    monkeypatch.setattr("urllib.request.urlopen", lambda *of, **options: fetched.append(of))
    for schema in ({"$ref": "http://localhost:1/x"}, {"$id": "http://localhost:1/", "$dynamicRef": "x"}):
        assert not validate_text("1", one(rule="json_schema", json_schema=schema)).passed
    assert not fetched


def test_a_secret_is_not_shown():
    report = validate_text("token ghp_" + "a1B2" * 9, one(rule="no_secrets"))
    assert "a1B2" not in str(report)
    assert not report.passed
