"""Chat templates, rendered within limits.

A template comes with a base or an adapter and is not trusted. It has the language that transformers gives it, in
Jinja's immutable sandbox. Besides, no value outgrows a limit: what can make a large value out of small ones is checked
before it runs, and each step checks the time. So every step is short, and a rendering ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any

from jinja2 import Template as JinjaTemplate
from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from adapterhub.requests.template_limits import (
    MAX_RENDERED_CHARACTERS,
    Rendering,
    RenderingLimitError,
    check_bits,
    check_compared,
    check_format,
    check_formatted,
    check_numbers,
    check_power,
    check_printed,
    check_product,
    check_range,
    check_replaced,
    checked_arguments,
    joined_items,
)

MAX_TEMPLATE_CHARACTERS = 100_000
# Names with a space, which no template can refer to.
_RENDERING, _ITERATED, _MADE, _JOINED, _SLICED, _SEARCHED = (
    "the rendering",
    "the iterated items",
    "the made value",
    "the joined texts",
    "the slice",
    "the searched value",
)
_MAX_DATE_FORMAT = 100
_MAX_SEPARATOR = 10
_REMOVED_FILTERS = ("batch", "center", "pprint", "slice", "urlize", "wordwrap", "xmlattr")
"""They make large values out of small ones, and no published chat template uses them."""
_PASSING_FILTERS = frozenset(
    {"count", "d", "default", "first", "items", "last", "length", "list", "map"}
    | {"reject", "rejectattr", "select", "selectattr"}
)
"""Filters whose result is a part of their input."""


def render_template(source: str, variables: Mapping[str, Any], max_characters: int | None = None) -> str:
    """Renders a chat template.

    Args:
        source: The template.
        variables: What it may use: JSON-like values.
        max_characters: The longest text to return.

    Raises:
        TextTooLongError: The text is longer.
        RenderingLimitError: Another limit was reached.
        Exception: Whatever the template's expressions raise.
    """
    rendering = Rendering(max_characters or MAX_RENDERED_CHARACTERS)
    chunks: list[str] = []
    for chunk in _compiled(source).generate({**variables, _RENDERING: rendering}):
        rendering.print(len(chunk))
        chunks.append(chunk)
    return "".join(chunks)


class _Environment(ImmutableSandboxedEnvironment):
    """Transformers' environment of chat templates, with limits."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        rendering: Rendering = context[_RENDERING]
        rendering.step()
        match operator:
            case "*":
                check_product(rendering, left, right)
            case "**":
                check_power(left, right)
            case "%" if isinstance(left, str):
                check_format(left)
                check_formatted(rendering, left, right)
        result = super().call_binop(context, operator, left, right)
        if operator in "+%*" and not isinstance(result, int | float):
            rendering.weigh(result)
        return result

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  as in Jinja
        rendering: Rendering = __context[_RENDERING]
        rendering.step()
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            args = checked_arguments(rendering, owner, name, args, kwargs)
        elif name in ("format", "format_map") and hasattr(__obj, "__wrapped__"):
            check_formatted(rendering, __obj.__wrapped__.__self__, *args, *kwargs.values())
        elif name == "to_bytes":
            raise SecurityError("to_bytes is not available to chat templates")
        result = super().call(__context, __obj, *args, **kwargs)
        if not isinstance(owner, Mapping | list | tuple):  # their methods return what is in them
            rendering.weigh(result)
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            check_format(value.__self__)
        return wrapped

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Joins what a macro or a block has printed."""
        texts = list(parts)
        check_printed(sum(map(len, texts)))
        return "".join(texts)


def _limited_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    passed = _passed(function)

    @wraps(function)
    def limited(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        rendering: Rendering = context[_RENDERING]
        rendering.step()
        if name in _PASSING_FILTERS:
            leading = _leading(passed, context)
            passing = function(*leading, value, *args, **kwargs)
            if name == "list":
                rendering.check_list(passing)
            return passing
        named = list(kwargs.values())
        check_numbers([*args, *named])
        for one in (value, *args, *named):
            rendering.weigh(one)
        match name:
            case "format":
                check_format(str(value))
                check_formatted(rendering, str(value), *args, *named)
            case "replace" if len(args) > 1:
                check_replaced(rendering, str(value), str(args[0]), str(args[1]))
            case "trim":
                check_compared(str(value), *args, *named)
            case "join":
                value = joined_items(rendering, str(args[0] if args else kwargs.get("d", "")), value)
            case "indent":
                width = args[0] if args else kwargs.get("width", 4)
                width = width if isinstance(width, int) else len(str(width))
                rendering.check(rendering.weigh(value) + (str(value).count("\n") + 1) * width)
            case "sum" if not isinstance(args[1] if len(args) > 1 else kwargs.get("start", 0), int | float):
                raise SecurityError("sum adds up numbers only")
        result = function(*_leading(passed, context), value, *args, **kwargs)
        rendering.weigh(result)
        return result

    return _given_context(limited)


def _limited_test(function: Any) -> Callable[..., Any]:
    passed = _passed(function)

    @wraps(function)
    def limited(context: Context, *args: Any, **kwargs: Any) -> Any:
        context[_RENDERING].step()
        return function(*_leading(passed, context), *args, **kwargs)

    return _given_context(limited)


def _passed(function: Callable[..., Any]) -> str | None:
    return getattr(getattr(function, "jinja_pass_arg", None), "name", None)


def _given_context(function: Callable[..., Any]) -> Callable[..., Any]:
    """As `pass_context`, for a function that `wraps` has given what another is passed."""
    function.jinja_pass_arg = pass_context(lambda: None).jinja_pass_arg  # type: ignore[attr-defined]
    return function


def _leading(passed: str | None, context: Context) -> tuple[Any, ...]:
    match passed:
        case "context":
            return (context,)
        case "eval_context":
            return (context.eval_ctx,)
        case "environment":
            return (context.environment,)
    return ()


@pass_context
def _tojson(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As in transformers, which does not escape for HTML; private-use characters, which may be marks, stay."""
    if any(len(one) > _MAX_SEPARATOR for one in separators or ()):
        raise SecurityError("tojson is given a long separator")
    context[_RENDERING].weigh(value, indent if isinstance(indent, int) else len(indent or ""))
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    return re.sub(r"[\x7f-\U000effff\U00100000-\U0010ffff]", _escaped, text) if ensure_ascii else text


def _escaped(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1]


@pass_context
def _iterated(context: Context, items: Iterable[Any], body_characters: int) -> Iterator[Any]:
    rendering: Rendering = context[_RENDERING]
    for item in items:
        rendering.loop(body_characters)
        yield item


@pass_context
def _made(context: Context, value: Any) -> Any:
    context[_RENDERING].weigh(value)
    return value


@pass_context
def _sliced(context: Context, value: Any) -> Any:
    context[_RENDERING].step()
    context[_RENDERING].check_list(value)
    return value


@pass_context
def _searched(context: Context, value: Any) -> Any:
    context[_RENDERING].step()
    return value


@pass_context
def _joined(context: Context, *values: Any) -> str:
    rendering: Rendering = context[_RENDERING]
    rendering.step()
    rendering.check(sum(map(rendering.weigh, values)))
    return "".join(map(str, values))


@pass_context
def _printed(context: Context, value: Any) -> Any:
    context[_RENDERING].step()
    context[_RENDERING].weigh(value)
    return value


class _Limits(NodeTransformer):
    """Adds to a parsed template the checks that no hook of the environment covers."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # noqa: N802  as in Jinja
        self.generic_visit(node)
        literals = sum(
            len(data.data) for part in (*node.body, *node.else_) for data in part.find_all(nodes.TemplateData)
        )
        node.iter = _filtered(node.iter, _ITERATED, nodes.Const(literals))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:  # noqa: N802
        self.generic_visit(node)
        first, *rest = node.nodes
        return _filtered(first, _JOINED, *rest)

    def visit_Const(self, node: nodes.Const) -> nodes.Const:  # noqa: N802
        if isinstance(node.value, int):
            check_bits(node.value.bit_length())
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, _SLICED) if isinstance(node.arg, nodes.Slice) else node

    def visit_Operand(self, node: nodes.Operand) -> nodes.Operand:  # noqa: N802
        self.generic_visit(node)
        if node.op in ("in", "notin"):
            node.expr = _filtered(node.expr, _SEARCHED)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, _MADE)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, _MADE) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return _filtered(node, _MADE)


def _filtered(node: Any, name: str, *arguments: Any) -> nodes.Filter:
    return nodes.Filter(
        node, name, list(arguments), [], None, None, lineno=node.lineno, environment=node.environment
    )


class _Generation(Extension):
    """`{% generation %}`, which marks answers in templates for training."""

    tags = {"generation"}  # noqa: RUF012  as in Jinja

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict` without what else is reachable from the class."""

    def __call__(self, *arguments: Any, **named: Any) -> dict[Any, Any]:
        return dict(*arguments, **named)

    def fromkeys(self, *arguments: Any) -> dict[Any, Any]:
        return dict.fromkeys(*arguments)


class _Namespace(Namespace):
    """`namespace` without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _check_attribute(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r}")


def _raise_exception(message: Any) -> None:
    raise TemplateError(str(message))


def _range(*numbers: int) -> range:
    check_range(numbers)
    return safe_range(*numbers)


def _strftime_now(form: str) -> str:
    if len(form) > _MAX_DATE_FORMAT:
        raise SecurityError("strftime_now is given a long format")
    return datetime.now().strftime(form)


def _make_environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=_printed
    )  # autoescape is off: a prompt is no HTML
    del environment.globals["lipsum"]
    environment.globals.update(
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
        dict=_Dict(),
        namespace=_Namespace,
        range=_range,
    )
    environment.tests = {name: _limited_test(one) for name, one in environment.tests.items()}
    kept = {name: one for name, one in environment.filters.items() if name not in _REMOVED_FILTERS}
    environment.filters = {
        **{name: _limited_filter(name, one) for name, one in {**kept, "tojson": _tojson}.items()},
        _ITERATED: _iterated,
        _MADE: _made,
        _JOINED: _joined,
        _SLICED: _sliced,
        _SEARCHED: _searched,
    }
    return environment


_ENVIRONMENT = _make_environment()


@lru_cache(maxsize=256)
def _compiled(source: str) -> JinjaTemplate:
    if len(source) > MAX_TEMPLATE_CHARACTERS:
        raise RenderingLimitError(f"it has more than {MAX_TEMPLATE_CHARACTERS:,} characters itself")
    tree = _Limits().visit(_ENVIRONMENT.parse(source))
    return _ENVIRONMENT.from_string(tree)
