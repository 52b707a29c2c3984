"""Rules about what programs read: addresses, JSON, and texts that match a regular expression."""

from __future__ import annotations

import json
import sys
from typing import Any, Literal
from urllib.parse import urlsplit

import regex
from pydantic import Field, JsonValue, field_validator

from adapterhub.agent_tools.content_rules.clock import Clock
from adapterhub.agent_tools.content_rules.json_schema import Schema, SchemaFaultError
from adapterhub.agent_tools.content_rules.report import Fault
from adapterhub.agent_tools.content_rules.rule import BaseRule, shown
from adapterhub.agent_tools.content_rules.safe_patterns import MAX_PATTERN, Pattern, all_matches

Where = Literal["whole", "anywhere"]
_MAX_DIGITS = 4300  # Python's own limit as it is set at first
# As HTML's input type=email, which mail programs agree on, and with letters of any alphabet (RFC 6531).
_LOCAL = r"[\w.!#$%&'*+/=?^`{|}~-]{1,64}"
_LABEL = r"[^\W_](?:[\w-]{0,61}[^\W_])?"
_EMAIL = regex.compile(rf"(?<![\w.!#$%&'*+/=?^`{{|}}~-]){_LOCAL}@{_LABEL}(?:\.{_LABEL}){{1,8}}(?![\w-])")
_URL = regex.compile(r"\bhttps?://[^\s<>\"'`\\^{}|\x00-\x1f]{1,2048}", regex.IGNORECASE)
_HOST = regex.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*)\.?|[0-9a-f:.]*:[0-9a-f:.]*", regex.IGNORECASE)


class Email(BaseRule):
    """The text is, or has in it, an e-mail address."""

    rule: Literal["email"] = "email"
    where: Where = "anywhere"
    """Whether the whole text must be one, or one anywhere is enough."""

    def check(self, text: str, clock: Clock) -> Fault | None:
        if self.where == "whole":
            found = _EMAIL.fullmatch(text.strip()) if len(text) < 1000 else None
            good = found is not None and _plausible(found[0])
        else:
            good = any(_plausible(match[0]) for match in all_matches(_EMAIL, text, clock))
        return None if good else Fault(_not_found("e-mail address", self.where))


class Url(BaseRule):
    """The text is, or has in it, a web address (http or https)."""

    rule: Literal["url"] = "url"
    where: Where = "anywhere"
    """Whether the whole text must be one, or one anywhere is enough."""

    def check(self, text: str, clock: Clock) -> Fault | None:
        if self.where == "whole":
            good = len(text) < 4096 and _URL.fullmatch(text.strip()) is not None and _has_host(text.strip())
        else:
            good = any(_has_host(match[0]) for match in all_matches(_URL, text, clock))
        return None if good else Fault(_not_found("web address", self.where))


class Json(BaseRule):
    """The text is JSON (RFC 8259), without NaN and infinities."""

    rule: Literal["json"] = "json"

    def check(self, text: str, clock: Clock) -> Fault | None:
        return _parse(text)[1]


class JsonSchema(BaseRule):
    """The text is JSON that is valid under a JSON Schema."""

    rule: Literal["json_schema"] = "json_schema"
    json_schema: dict[str, JsonValue]
    """The schema (2020-12); references within it are followed, others are refused."""

    @field_validator("json_schema")
    @classmethod
    def _check_size(cls, schema: dict[str, Any]) -> dict[str, Any]:
        if len(json.dumps(schema)) > 100_000:
            raise ValueError("the schema has more than 100,000 characters")
        return schema

    def check(self, text: str, clock: Clock) -> Fault | None:
        value, fault = _parse(text)
        if fault:
            return fault
        try:
            Schema(self.json_schema, clock).check(value)
        except SchemaFaultError as wrong:
            return Fault(str(wrong))
        return None


class Regex(BaseRule):
    """The text matches, or does not match, a regular expression."""

    rule: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1, max_length=MAX_PATTERN)
    """The expression, in the syntax of Python's `regex` package."""
    match: Literal["anywhere", "whole", "nowhere"] = "anywhere"
    """Where it must match; `nowhere` forbids it."""

    def check(self, text: str, clock: Clock) -> Fault | None:
        try:
            found = Pattern(self.pattern).find(text, clock, whole=self.match == "whole")
        except ValueError as error:
            return Fault(str(error))
        if self.match == "nowhere":
            return Fault(f"{shown(self.pattern)} matches", found) if found is not None else None
        return None if found is not None else Fault(f"{shown(self.pattern)} does not match")


def _parse(text: str) -> tuple[Any, Fault | None]:
    limit = sys.get_int_max_str_digits()
    # Where Python's own limit has been lifted, a long number would take minutes; but asking for each triples the time.
    parse_int = int if 0 < limit <= _MAX_DIGITS else _integer
    try:
        return json.loads(text, parse_int=parse_int, parse_constant=_constant), None
    except json.JSONDecodeError as error:
        return None, Fault(f"not JSON: {error.msg}", min(error.pos, len(text)))
    except _ConstantError as error:
        return None, Fault(f"not JSON that can be read: {error}")
    except ValueError:
        most = min(limit or _MAX_DIGITS, _MAX_DIGITS)
        return None, Fault(f"not JSON that can be read: a number has more than {most} digits")
    except RecursionError:
        return None, Fault("not JSON that can be read: it is nested too deeply")


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError
    return int(digits)


class _ConstantError(ValueError):
    """`NaN` or an infinity, which Python reads and JSON does not have."""


def _constant(name: str) -> None:
    raise _ConstantError(f"{name} is no JSON value")


def _plausible(address: str) -> bool:
    local = address.partition("@")[0]
    return len(address) <= 254 and not local.startswith(".") and not local.endswith(".") and ".." not in local


def _has_host(address: str) -> bool:
    try:
        parts = urlsplit(address.rstrip(".,;:!?)]"))
        return (parts.port or 1) > 0 and _HOST.fullmatch(parts.hostname or "") is not None
    except ValueError:  # a port or an IPv6 address that is none
        return False


def _not_found(kind: str, where: Where) -> str:
    return f"the text is no {kind}" if where == "whole" else f"there is no {kind}"
