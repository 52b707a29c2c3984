"""Untrusted JSON Schemas: nothing is fetched, and a check ends in time.

`jsonschema` does the checking. Each keyword looks at the deadline first, because schemas can combine into more work
than any text is long. The keywords with regular expressions are replaced by ones whose patterns have a time limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from jsonschema.validators import extend
from jsonschema_specifications import REGISTRY
from referencing import Registry
from referencing.exceptions import Unresolvable

from adapterhub._deadline import Deadline
from adapterhub._patterns import SafePattern
from adapterhub.agent_tools.content_rules.base_rule import abbreviate
from adapterhub.agent_tools.content_rules.string_formats import STRING_FORMATS

_MAX_DEPTH = 100
# JSON has no other containers; `isinstance` takes four times as long.
_CONTAINERS = frozenset({dict, list})
_BOOLEANS = (object(), object())
Keyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError]]


class SchemaViolationError(Exception):
    """The value is not valid under the schema, or the schema itself cannot be checked."""


class Schema:
    """An untrusted JSON Schema (2020-12).

    Args:
        schema: The schema.
        deadline: The time for all checks with it.

    Raises:
        SchemaViolationError: It is not valid, or uses what cannot be checked safely.
        DeadlineExceededError: The check did not end in time.
    """

    def __init__(self, schema: Any, deadline: Deadline) -> None:
        if _depth(schema) > _MAX_DEPTH:
            raise SchemaViolationError(f"the schema is nested deeper than {_MAX_DEPTH} levels")
        if "unevaluatedProperties" in str(schema) and "patternProperties" in str(schema):
            raise SchemaViolationError(
                "a schema with both unevaluatedProperties and patternProperties is not checked"
            )
        self._deadline, self._patterns = deadline, _PatternKeywords(deadline)
        self._validator = self._class()(schema, registry=Registry())
        error = self._first_violation(
            self._class()(Draft202012Validator.META_SCHEMA, registry=REGISTRY), schema
        )
        if error:
            raise SchemaViolationError(f"the schema is not valid{_describe(error)}")

    def check(self, value: Any) -> None:
        """Checks a JSON value.

        Raises:
            SchemaViolationError: It is not valid.
            DeadlineExceededError: The check did not end in time.
        """
        if _depth(value) > _MAX_DEPTH:
            raise SchemaViolationError(f"the JSON is nested deeper than {_MAX_DEPTH} levels")
        error = self._first_violation(self._validator, value)
        if error:
            raise SchemaViolationError(f"not valid under the schema{_describe(error)}")

    def _first_violation(self, validator: Any, value: Any) -> ValidationError | None:
        try:
            return best_match(self._deadline.limit(validator.iter_errors(value)))
        except Unresolvable as error:
            raise SchemaViolationError(
                f"the schema refers to {abbreviate(error.ref)}, which is not in it"
            ) from error
        except RecursionError as error:
            raise SchemaViolationError("the schema refers to itself without end") from error
        except (ValueError, OverflowError, ArithmeticError) as error:  # of a pattern or a number
            raise SchemaViolationError(f"the schema cannot be checked: {abbreviate(error, 200)}") from error

    def _class(self) -> Any:
        keywords = {
            **Draft202012Validator.VALIDATORS,
            **self._patterns.keywords,
            "uniqueItems": self._unique_items,
            "multipleOf": _multiple_of,
            "format": _format,
        }
        return extend(
            Draft202012Validator, {name: self._with_deadline(check) for name, check in keywords.items()}
        )

    def _unique_items(self, validator: Any, enabled: Any, value: Any, _: Any) -> Iterator[ValidationError]:
        """In linear time; `jsonschema` may compare every pair of items."""
        items = value if enabled and isinstance(value, list) else ()
        if len({_key(item) for item in self._deadline.limit(items)}) < len(items):
            yield ValidationError("the list has an item twice")

    def _with_deadline(self, check: Keyword) -> Keyword:
        def checked(validator: Any, argument: Any, value: Any, schema: Any) -> Any:
            self._deadline.check()
            return check(validator, argument, value, schema) or ()

        return checked


class _PatternKeywords:
    """The keywords that match regular expressions."""

    def __init__(self, deadline: Deadline) -> None:
        self._deadline = deadline
        self._compiled: dict[str, SafePattern] = {}
        self.keywords: dict[str, Keyword] = {
            "pattern": self._pattern,
            "patternProperties": self._pattern_properties,
            "additionalProperties": self._additional_properties,
        }

    def _matches(self, pattern: str, text: str) -> bool:
        if pattern not in self._compiled:
            self._compiled[pattern] = SafePattern(pattern)
        return self._compiled[pattern].search(text, self._deadline) is not None

    def _pattern(self, validator: Any, pattern: str, value: Any, _: Any) -> Iterator[ValidationError]:
        if isinstance(value, str) and not self._matches(pattern, value):
            yield ValidationError(f"{abbreviate(value)} does not match {abbreviate(pattern)}")

    def _pattern_properties(
        self, validator: Any, parts: Any, value: Any, _: Any
    ) -> Iterator[ValidationError]:
        for pattern, part in parts.items() if isinstance(value, dict) else ():
            for name in value:
                if self._matches(pattern, name):
                    yield from validator.descend(value[name], part, path=name, schema_path=pattern)

    def _additional_properties(
        self, validator: Any, part: Any, value: Any, schema: Any
    ) -> Iterator[ValidationError]:
        if not isinstance(value, dict):
            return
        patterns = schema.get("patternProperties", {})
        for name in self._deadline.limit(value.keys() - schema.get("properties", {}).keys()):
            if any(self._matches(pattern, name) for pattern in patterns):
                continue
            if part is False:
                yield ValidationError(f"the property {abbreviate(name)} is not allowed")
            else:
                yield from validator.descend(value[name], part, path=name)


def _multiple_of(validator: Any, divisor: Any, value: Any, _: Any) -> Iterator[ValidationError]:
    """In decimal, as numbers are written in JSON: in binary, 19.99 is no multiple of 0.01."""
    if validator.is_type(value, "number") and (_exact(value) / _exact(divisor)).denominator != 1:
        yield ValidationError(f"{abbreviate(value)} is not a multiple of {abbreviate(divisor)}")


def _exact(number: float) -> Fraction:
    return Fraction(number) if isinstance(number, int) else Fraction(repr(number))


def _format(validator: Any, name: Any, value: Any, _: Any) -> Iterator[ValidationError]:
    check = STRING_FORMATS.get(name) if isinstance(name, str) else None
    if check and isinstance(value, str) and not check(value):
        yield ValidationError(f"{abbreviate(value)} is no {name}")


def _key(value: Any) -> Any:
    """A key that is equal for equal JSON values: 1 and 1.0 are equal, 1 and true are not."""
    kind = type(value)
    if kind is dict:
        return frozenset([(name, _key(part)) for name, part in value.items()])
    if kind is list:
        return tuple([_key(part) for part in value])
    return _BOOLEANS[value] if kind is bool else value


def _depth(value: Any) -> int:
    """The nesting depth of lists and objects; counting stops beyond the limit."""
    depth, level = 0, [value] if type(value) in _CONTAINERS else []
    while level and depth <= _MAX_DEPTH:
        parts = [part.values() if type(part) is dict else part for part in level]
        level = [inner for part in parts for inner in part if type(inner) in _CONTAINERS]
        depth += 1
    return depth


def _describe(error: ValidationError) -> str:
    path = "".join(
        f"[{step}]" if isinstance(step, int) else f".{abbreviate(step)}" for step in error.absolute_path
    )
    return f" at ${path[:200]}: {_reason(error)}"


def _reason(error: ValidationError) -> str:
    """The message of `jsonschema` where it is short; others contain the whole value."""
    if error.validator in ("required", "additionalProperties", "pattern", "uniqueItems"):
        return abbreviate(error.message, 200)
    return f"{abbreviate(error.instance)} violates {error.validator}: {abbreviate(error.validator_value)}"
