"""Rules about formats: e-mail addresses, URLs, JSON, JSON Schema, regular expressions."""

from __future__ import annotations

import json
import sys
from typing import Any, Literal

import regex
from pydantic import Field, JsonValue, field_validator

from adapterhub._deadline import Deadline
from adapterhub._patterns import MAX_PATTERN, SafePattern, all_matches
from adapterhub.agent_tools.content_rules.base_rule import BaseRule, abbreviate
from adapterhub.agent_tools.content_rules.json_schema import Schema, SchemaViolationError
from adapterhub.agent_tools.content_rules.report import Violation
from adapterhub.agent_tools.content_rules.string_formats import LABEL, email_error, has_valid_host

Where = Literal["whole", "anywhere"]
_MAX_DIGITS = 4300  # Python's own default
# What may be an address within a text; `email_validator` decides.
_EMAIL_CANDIDATE = regex.compile(
    rf"(?<![\w.!#$%&'*+/=?^`{{|}}~-])[\w.!#$%&'*+/=?^`{{|}}~-]{{1,64}}@{LABEL}(?:\.{LABEL}){{1,8}}(?![\w-])"
)
_MAX_URL = 4096
_AFTER_URL = ".,;:!?)]'"
# An apostrophe may stand in a path, and ends a quoted host. `has_valid_host` decides.
_URL = regex.compile(
    r"\bhttps?://[^\s<>\"'`\\^{}|/?#\x00-\x1f]{1,300}(?:[/?#][^\s<>\"`\\^{}|\x00-\x1f]{0,2048})?",
    regex.IGNORECASE,
)


class Email(BaseRule):
    """An e-mail address."""

    rule: Literal["email"] = "email"
    where: Where = "anywhere"
    """Whether the whole text is one."""

    def check(self, text: str, deadline: Deadline) -> Violation | None:
        if self.where == "whole":
            error = email_error(text.strip())
            return Violation(f"the text is no e-mail address: {abbreviate(error, 200)}") if error else None
        candidates = all_matches(_EMAIL_CANDIDATE, text, deadline)
        if any(email_error(candidate[0]) is None for candidate in candidates):
            return None
        return Violation("there is no e-mail address")


class Url(BaseRule):
    """A URL (http or https)."""

    rule: Literal["url"] = "url"
    where: Where = "anywhere"
    """Whether the whole text is one."""

    def check(self, text: str, deadline: Deadline) -> Violation | None:
        if self.where == "whole":
            url = text.strip() if len(text) <= _MAX_URL else ""
            valid = _URL.fullmatch(url) is not None and has_valid_host(url)
            return None if valid else Violation("the text is no URL")
        if any(has_valid_host(match[0].rstrip(_AFTER_URL)) for match in all_matches(_URL, text, deadline)):
            return None
        return Violation("there is no URL")


class Json(BaseRule):
    """The text is JSON, without NaN."""

    rule: Literal["json"] = "json"

    def check(self, text: str, deadline: Deadline) -> Violation | None:
        return _parse(text)[1]


class JsonSchema(BaseRule):
    """The text is JSON that a JSON Schema allows."""

    rule: Literal["json_schema"] = "json_schema"
    json_schema: dict[str, JsonValue]
    """The schema (2020-12), without outside references."""

    @field_validator("json_schema")
    @classmethod
    def _check_size(cls, schema: dict[str, Any]) -> dict[str, Any]:
        if len(json.dumps(schema)) > 100_000:
            raise ValueError("the schema has more than 100,000 characters")
        return schema

    def check(self, text: str, deadline: Deadline) -> Violation | None:
        value, violation = _parse(text)
        if violation:
            return violation
        try:
            Schema(self.json_schema, deadline).check(value)
        except SchemaViolationError as error:
            return Violation(str(error))
        return None


class Regex(BaseRule):
    """A regular expression."""

    rule: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1, max_length=MAX_PATTERN)
    """In Python's syntax."""
    match: Literal["anywhere", "whole", "nowhere"] = "anywhere"
    """Where it must match."""

    def check(self, text: str, deadline: Deadline) -> Violation | None:
        try:
            offset = SafePattern(self.pattern).search(text, deadline, full=self.match == "whole")
        except ValueError as error:
            return Violation(str(error))
        if self.match == "nowhere":
            return Violation(f"{abbreviate(self.pattern)} matches", offset) if offset is not None else None
        return None if offset is not None else Violation(f"{abbreviate(self.pattern)} does not match")


def _parse(text: str) -> tuple[Any, Violation | None]:
    limit = sys.get_int_max_str_digits()
    # Without Python's limit a long number takes minutes. With it, `int` does: a function for each number costs 3 x.
    parse_int = int if 0 < limit <= _MAX_DIGITS else _parse_int
    try:
        return json.loads(text, parse_int=parse_int, parse_constant=_refuse_constant), None
    except json.JSONDecodeError as error:
        return None, Violation(f"not JSON: {error.msg}", min(error.pos, len(text)))
    except _ConstantError as error:
        return None, Violation(f"not JSON that can be read: {error}")
    except ValueError:
        max_digits = min(limit or _MAX_DIGITS, _MAX_DIGITS)
        return None, Violation(f"not JSON that can be read: a number has more than {max_digits} digits")
    except RecursionError:
        return None, Violation("not JSON that can be read: it is nested too deeply")


def _parse_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError
    return int(digits)


class _ConstantError(ValueError):
    """`NaN` or an infinity, which Python's parser accepts and JSON does not have."""


def _refuse_constant(name: str) -> None:
    raise _ConstantError(f"{name} is no JSON value")
