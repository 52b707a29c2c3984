"""JSON Schemas of strangers: nothing is fetched, and whatever they say, checking ends in time.

`jsonschema` does the checking. Each of its keywords looks at the clock first, since schemas can combine into more work
than any text is long. Those that match regular expressions are written anew over patterns with a time limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match
from jsonschema.validators import extend
from jsonschema_specifications import REGISTRY
from referencing import Registry
from referencing.exceptions import Unresolvable

from adapterhub.agent_tools.content_rules.clock import Clock
from adapterhub.agent_tools.content_rules.rule import shown
from adapterhub.agent_tools.content_rules.safe_patterns import Pattern

_MAX_DEPTH = 100
_NESTED = frozenset(
    {dict, list}
)  # values come from JSON, which has no other: `isinstance` takes four times as long
_BOOLEANS = (object(), object())
Keyword = Callable[[Any, Any, Any, Any], Iterator[ValidationError]]


class SchemaFaultError(Exception):
    """The value is not valid under the schema, or the schema is none that can be checked."""


class Schema:
    """A JSON Schema (2020-12) that may be hostile.

    Args:
        schema: The schema.
        clock: The time for all that is done with it.

    Raises:
        SchemaFaultError: It is not valid, or uses what cannot be checked safely.
        OutOfTimeError: That could not be found out in time.
    """

    def __init__(self, schema: Any, clock: Clock) -> None:
        if _depth(schema) > _MAX_DEPTH:
            raise SchemaFaultError(f"the schema is nested deeper than {_MAX_DEPTH} levels")
        if "unevaluatedProperties" in str(schema) and "patternProperties" in str(schema):
            raise SchemaFaultError(
                "a schema with both unevaluatedProperties and patternProperties is not checked"
            )
        self._clock, self._patterns = clock, _Patterns(clock)
        self._validator = self._class()(schema, registry=Registry())
        wrong = self._first_fault(self._class()(Draft202012Validator.META_SCHEMA, registry=REGISTRY), schema)
        if wrong:
            raise SchemaFaultError(f"the schema is not valid{_told(wrong)}")

    def check(self, value: Any) -> None:
        """Checks a JSON value.

        Raises:
            SchemaFaultError: It is not valid.
            OutOfTimeError: That could not be found out in time.
        """
        if _depth(value) > _MAX_DEPTH:
            raise SchemaFaultError(f"the JSON is nested deeper than {_MAX_DEPTH} levels")
        wrong = self._first_fault(self._validator, value)
        if wrong:
            raise SchemaFaultError(f"not valid under the schema{_told(wrong)}")

    def _first_fault(self, validator: Any, value: Any) -> ValidationError | None:
        try:
            return best_match(self._clock.watch(validator.iter_errors(value)))
        except Unresolvable as error:
            raise SchemaFaultError(f"the schema refers to {shown(error.ref)}, which is not in it") from error
        except RecursionError as error:
            raise SchemaFaultError("the schema refers to itself without end") from error
        except (ValueError, OverflowError, ArithmeticError) as error:  # of a pattern or a number
            raise SchemaFaultError(f"the schema cannot be checked: {shown(error, 200)}") from error

    def _class(self) -> Any:
        keywords = {
            **Draft202012Validator.VALIDATORS,
            **self._patterns.keywords,
            "uniqueItems": self._unique_items,
        }
        return extend(Draft202012Validator, {name: self._timed(check) for name, check in keywords.items()})

    def _unique_items(self, validator: Any, wanted: Any, value: Any, _: Any) -> Iterator[ValidationError]:
        """In time that grows with the list, where `jsonschema` may compare each item with each other."""
        items = value if wanted and isinstance(value, list) else ()
        if len({_key(item) for item in self._clock.watch(items)}) < len(items):
            yield ValidationError("the list has an item twice")

    def _timed(self, check: Keyword) -> Keyword:
        def timed(validator: Any, argument: Any, value: Any, schema: Any) -> Any:
            self._clock.check()
            return check(validator, argument, value, schema) or ()

        return timed


class _Patterns:
    """The keywords that match regular expressions."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._compiled: dict[str, Pattern] = {}
        self.keywords: dict[str, Keyword] = {
            "pattern": self._pattern,
            "patternProperties": self._pattern_properties,
            "additionalProperties": self._additional_properties,
        }

    def _found(self, pattern: str, text: str) -> bool:
        if pattern not in self._compiled:
            self._compiled[pattern] = Pattern(pattern)
        return self._compiled[pattern].find(text, self._clock) is not None

    def _pattern(self, validator: Any, pattern: str, value: Any, _: Any) -> Iterator[ValidationError]:
        if isinstance(value, str) and not self._found(pattern, value):
            yield ValidationError(f"{shown(value)} does not match {shown(pattern)}")

    def _pattern_properties(
        self, validator: Any, parts: Any, value: Any, _: Any
    ) -> Iterator[ValidationError]:
        for pattern, part in parts.items() if isinstance(value, dict) else ():
            for name in value:
                if self._found(pattern, name):
                    yield from validator.descend(value[name], part, path=name, schema_path=pattern)

    def _additional_properties(
        self, validator: Any, part: Any, value: Any, schema: Any
    ) -> Iterator[ValidationError]:
        if not isinstance(value, dict):
            return
        patterns = schema.get("patternProperties", {})
        for name in self._clock.watch(value.keys() - schema.get("properties", {}).keys()):
            if any(self._found(pattern, name) for pattern in patterns):
                continue
            if part is False:
                yield ValidationError(f"the property {shown(name)} is not allowed")
            else:
                yield from validator.descend(value[name], part, path=name)


def _key(value: Any) -> Any:
    """What equal JSON values share: 1 and 1.0 are equal, 1 and true are not."""
    kind = type(value)
    if kind is dict:
        return frozenset([(name, _key(part)) for name, part in value.items()])
    if kind is list:
        return tuple([_key(part) for part in value])
    return _BOOLEANS[value] if kind is bool else value


def _depth(value: Any) -> int:
    """How deep lists and objects are nested; stops counting beyond the limit."""
    depth, level = 0, [value] if type(value) in _NESTED else []
    while level and depth <= _MAX_DEPTH:
        parts = [part.values() if type(part) is dict else part for part in level]
        level = [inner for part in parts for inner in part if type(inner) in _NESTED]
        depth += 1
    return depth


def _told(error: ValidationError) -> str:
    place = "".join(
        f"[{step}]" if isinstance(step, int) else f".{shown(step)}" for step in error.absolute_path
    )
    return f" at ${place[:200]}: {_reason(error)}"


def _reason(error: ValidationError) -> str:
    """The keyword's own words are short and keep long values out of the reason."""
    if error.validator in ("required", "additionalProperties", "pattern", "uniqueItems"):
        return shown(error.message, 200)
    return f"{shown(error.instance)} does not keep to {error.validator}: {shown(error.validator_value)}"
