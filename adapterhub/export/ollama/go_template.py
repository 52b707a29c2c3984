"""Renders a Go template as Ollama does: https://github.com/ollama/ollama/blob/main/template/template.go.

Maps and structs are mappings here, whose order is that of their keys or fields; slices are lists. A value that Go would
print in a form of its own, such as a map, is refused: a template that is verified here prints texts and whole numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from adapterhub.export.ollama.go_syntax import (
    Action,
    Branch,
    Call,
    Constant,
    Function,
    GoTemplate,
    GoTemplateError,
    Jump,
    Node,
    Nodes,
    Operand,
    Pipeline,
    Text,
    parse,
)

_MAX_DEPTH = 50


class GoStruct(dict[str, Any]):
    """A struct: its fields by Go's names.

    Args:
        fields: The fields that a template may name.
        written: What `json` writes for it, whose names are others.
    """

    def __init__(self, fields: Mapping[str, Any], written: Mapping[str, Any]) -> None:
        super().__init__(fields)
        self.written = written


def render_go_template(template: str | GoTemplate, data: Mapping[str, Any]) -> str:
    """Renders a template.

    Args:
        template: The template, or what `parse` made of it.
        data: The root value, whose keys are the fields.

    Raises:
        GoTemplateError: The template is not valid, uses what is not known here, or fails on this data as in Go.
    """
    parsed = parse(template) if isinstance(template, str) else template
    execution = _Execution(parsed)
    execution.run(parsed.nodes, data, _Scope({"$": data}))
    return "".join(execution.printed)


class _Jump(Exception):  # noqa: N818 - a jump, no error
    def __init__(self, kind: str) -> None:
        self.kind = kind


class _Scope(dict[str, Any]):
    """The variables of a block, and the block around it."""

    __slots__ = ("_outer",)

    def __init__(self, variables: Any = (), outer: _Scope | None = None) -> None:
        super().__init__(variables)
        self._outer = outer

    def holder(self, name: str) -> _Scope:
        """The innermost scope in which a variable is declared."""
        scope: _Scope | None = self
        while scope is not None:
            if name in scope:
                return scope
            scope = scope._outer
        raise GoTemplateError(f"the variable {name} is not declared")


class _Execution:
    def __init__(self, template: GoTemplate) -> None:
        self._template = template
        self._depth = 0
        self.printed: list[str] = []

    def run(self, nodes: Nodes, dot: Any, variables: _Scope) -> None:
        for node in nodes:
            self._node(node, dot, variables)

    def _node(self, node: Node, dot: Any, variables: _Scope) -> None:
        match node:
            case Text(text):
                self.printed.append(text)
            case Action(pipeline):
                value = self._value(pipeline, dot, variables)
                if not pipeline.variables:
                    self.printed.append(_printed(value))
            case Branch("range"):
                self._range(node, dot, variables)
            case Branch(kind, pipeline, body, otherwise):
                scope = _Scope(outer=variables)
                value = self._value(pipeline, dot, scope)
                inner = value if kind == "with" and _is_true(value) else dot
                self.run(body if _is_true(value) else otherwise, inner, scope)
            case Call(name, pipeline):
                self._call(name, self._value(pipeline, dot, variables))
            case Jump(kind):
                raise _Jump(kind)

    def _call(self, name: str, dot: Any) -> None:
        if name not in self._template.defined:
            raise GoTemplateError(f"template {name!r} is not defined")
        known = self._template.rendered
        if isinstance(dot, str) and (name, dot) in known:
            self.printed.append(known[name, dot])
            return
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise GoTemplateError(f"templates call each other more than {_MAX_DEPTH} deep")
        start = len(self.printed)
        self.run(self._template.defined[name], dot, _Scope({"$": dot}))
        self._depth -= 1
        if isinstance(dot, str):
            known[name, dot] = "".join(self.printed[start:])

    def _range(self, node: Branch, dot: Any, variables: _Scope) -> None:
        names = node.pipeline.variables
        items = _items(self._value(Pipeline(node.pipeline.commands), dot, variables))
        if not items:
            self.run(node.otherwise, dot, _Scope(outer=variables))
        for key, item in items:
            values = (key, item) if len(names) == 2 else (item,)
            try:
                self.run(node.body, item, _Scope(zip(names, values, strict=False), outer=variables))
            except _Jump as jump:
                if jump.kind == "break":
                    return

    def _value(self, pipeline: Pipeline, dot: Any, variables: _Scope) -> Any:
        passed: list[Any] = []
        for command in pipeline.commands:
            passed = [self._command(command, passed, dot, variables)]
        for name in pipeline.variables:
            scope = variables if pipeline.declares else variables.holder(name)
            scope[name] = passed[0]
        return passed[0]

    def _command(self, command: Sequence[Operand], passed: Sequence[Any], dot: Any, variables: _Scope) -> Any:
        first, *rest = command
        if not isinstance(first, Function):
            if rest or passed:
                raise GoTemplateError("a value that is no function is given arguments")
            return self._operand(first, dot, variables)
        if first.name in ("and", "or"):  # their arguments are evaluated as long as they are needed
            return self._logical(first.name, [*rest, *map(Constant, passed)], dot, variables)
        function = _FUNCTIONS.get(first.name)
        if function is None:
            raise GoTemplateError(f"the function {first.name!r} is not known")
        arguments = [self._operand(one, dot, variables) for one in rest]
        try:
            return function(*arguments, *passed)
        except (TypeError, IndexError, KeyError, ValueError) as error:
            raise GoTemplateError(f"{first.name} fails: {error}") from error

    def _logical(self, name: str, operands: Iterable[Operand], dot: Any, variables: _Scope) -> Any:
        value: Any = None
        for operand in operands:
            value = self._operand(operand, dot, variables)
            if _is_true(value) == (name == "or"):
                break
        return value

    def _operand(self, operand: Operand, dot: Any, variables: _Scope) -> Any:
        match operand:
            case Constant(value):
                return value
            case Pipeline():
                return self._value(operand, dot, variables)
            case Function():
                return self._command([operand], [], dot, variables)
        value = dot
        if isinstance(operand.root, Pipeline):
            value = self._value(operand.root, dot, variables)
        elif operand.root is not None:
            value = variables.holder(operand.root)[operand.root]
        for name in operand.path:
            if not isinstance(value, Mapping):
                raise GoTemplateError(f"there is no field {name!r} in a {_type(value)}")
            value = value.get(name)  # Ollama sets missingkey=zero
        return value


def _items(value: Any) -> list[tuple[Any, Any]]:
    match value:
        case None:
            return []
        case Mapping():
            return [(key, value[key]) for key in sorted(value)]
        case bool() | str():
            raise GoTemplateError(f"range cannot iterate over a {_type(value)}")
        case int():
            return [(number, number) for number in range(value)]
    return list(enumerate(value))


def _is_true(value: Any) -> bool:
    return bool(value)


def _printed(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str() | int():
            return str(value)
    raise GoTemplateError(f"a {_type(value)} is printed, whose form is Go's own")


def _type(value: Any) -> str:
    kinds = (
        (bool, "bool"),
        (str, "string"),
        (int, "int"),
        (float, "float64"),
        (Mapping, "map"),
        (list, "slice"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "nil")


def _print(*values: Any) -> str:
    """Go's `Sprint`: a space only between two values that are both no texts."""
    printed = ""
    for index, value in enumerate(values):
        gap = index > 0 and not isinstance(value, str) and not isinstance(values[index - 1], str)
        printed += " " * gap + _printed(value)
    return printed


def _equal(first: Any, *others: Any) -> bool:
    if not others:
        raise TypeError("eq needs two values")
    for other in others:
        if _type(first) != _type(other) and None not in (first, other):
            raise TypeError(f"a {_type(first)} and a {_type(other)} cannot be compared")
    return first in others


def _ordered(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def compared(left: Any, right: Any) -> bool:
        if _type(left) != _type(right):
            raise TypeError(f"a {_type(left)} and a {_type(right)} cannot be compared")
        return compare(left, right)

    return compared


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, Mapping):
            value = value.get(key)
        elif key < 0:
            raise IndexError("index out of range")
        else:
            value = value[key]
    return value


def _slice(value: Any, *bounds: int) -> Any:
    """Texts are sliced by characters; in Go by bytes, which is the same to a template that looks at ASCII only."""
    start, end = (*bounds, *(0, len(value))[len(bounds) :])[:2]
    if not 0 <= start <= end <= len(value):
        raise IndexError("slice out of range")
    return value[start:end]


def go_json(value: Any, *, sort: bool = True) -> str:
    """The value as Go's `json.Marshal` writes it: without spaces, and `<`, `>` and `&` escaped.

    Args:
        value: Texts, numbers, lists, mappings and structs.
        sort: Whether mappings are maps, which are sorted; what a struct holds keeps its order.
    """
    match value:
        case bool() | None | int():
            return json.dumps(value)
        case float():
            return _number(value)
        case str():
            text = json.dumps(value, ensure_ascii=False)
            return re.sub("[<>&\u2028\u2029]", lambda match: f"\\u{ord(match[0]):04x}", text)
        case GoStruct():
            return go_json(value.written, sort=False)
        case Mapping():
            names = sorted(value) if sort else value
            return (
                "{" + ",".join(f"{go_json(name)}:{go_json(value[name], sort=sort)}" for name in names) + "}"
            )
    return "[" + ",".join(go_json(one, sort=sort) for one in value) + "]"


def _number(value: float) -> str:
    if value and not 1e-6 <= abs(value) < 1e21:
        mantissa, exponent = repr(value).split("e")
        return f"{mantissa}e{int(exponent):+d}"
    text = format(Decimal(repr(value)), "f")
    return text.removesuffix(".0")


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "eq": _equal,
    "ne": lambda left, right: not _equal(left, right),
    "lt": _ordered(lambda left, right: left < right),
    "le": _ordered(lambda left, right: left <= right),
    "gt": _ordered(lambda left, right: left > right),
    "ge": _ordered(lambda left, right: left >= right),
    "not": lambda value: not _is_true(value),
    "len": len,
    "index": _index,
    "slice": _slice,
    "print": _print,
    "json": go_json,
}
