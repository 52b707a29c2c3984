"""Chat templates, rendered within limits.

A template comes with a base or an adapter and is not trusted. It has the language that transformers gives it, in
Jinja's immutable sandbox. Besides, no value outgrows a limit: what can make a large value out of small ones is checked
before it runs, and each step checks the time. So every step is short, and a rendering ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any

from jinja2 import Template as JinjaTemplate
from jinja2 import TemplateError, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from adapterhub._deadline import Deadline

MAX_TEMPLATE_CHARACTERS = 200_000
MAX_RENDERED_CHARACTERS = 64_000_000
MAX_RENDER_SECONDS = 2.0
"""Processor time of one rendering; published templates take milliseconds."""
_MAX_VALUE_CHARACTERS, _MAX_TEXT_CHARACTERS = 4_000_000, 16_000_000
_PART_SIZE = 32
"""What a part of a list or a mapping counts besides its text, for the time that it takes."""
_MAX_BITS = 4096
_MAX_NUMBER = _MAX_WIDTH = 10_000
_CLOCK_EVERY = 16
# Names with a space, which no template can refer to.
_RENDERING, _ITERATED, _MADE, _JOINED = (
    "the rendering",
    "the iterated items",
    "the made value",
    "the joined texts",
)
_REMOVED_FILTERS = ("batch", "center", "pprint", "slice", "urlize", "wordwrap", "xmlattr")
"""They make large values out of small ones, and no published chat template uses them."""
_PASSING_FILTERS = frozenset(
    {"count", "d", "default", "first", "items", "last", "length", "list", "map"}
    | {"reject", "rejectattr", "reverse", "select", "selectattr"}
)
"""Filters whose result is a part of their input."""
_FORMAT_WIDTH = re.compile(r"\d{5}|%[^a-zA-Z%]*\*|\{[^{}]*\{")


class RenderingLimitError(TemplateError):
    """A rendering takes too long, or makes too large a value."""


class TextTooLongError(RenderingLimitError):
    """The rendered text is longer than it may be."""


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
    rendering = _Rendering(max_characters or MAX_RENDERED_CHARACTERS)
    chunks: list[str] = []
    for chunk in _compiled(source).generate({**variables, _RENDERING: rendering}):
        rendering.print(len(chunk))
        chunks.append(chunk)
    return "".join(chunks)


class _Rendering:
    """The limits of one rendering, and what it has used."""

    def __init__(self, max_characters: int) -> None:
        self._max_characters = max_characters
        self._max_size = max(_MAX_VALUE_CHARACTERS, min(max_characters, _MAX_TEXT_CHARACTERS))
        self._deadline = Deadline(MAX_RENDER_SECONDS)
        self._steps = self._printed = self._looped = 0

    def step(self) -> None:
        self._steps += 1
        if self._steps % _CLOCK_EVERY == 0:
            self.check_time()

    def check_time(self) -> None:
        if self._deadline.remaining <= 0:
            raise RenderingLimitError(f"it takes more than {MAX_RENDER_SECONDS:g} s")

    def print(self, characters: int) -> None:
        self.step()
        self._printed += characters
        if self._printed > self._max_characters:
            raise TextTooLongError(f"its text has more than {self._max_characters:,} characters")

    def loop(self, characters: int) -> None:
        """Counts what a loop's body prints, which may be in a macro."""
        self.step()
        self._looped += characters
        _check_printed(self._looped)

    def check(self, size: int) -> None:
        if size > self._max_size:
            raise RenderingLimitError(f"it makes a value of more than {self._max_size:,} characters")

    def weigh(self, value: Any, indent: int = 0) -> int:
        """The size of a value written out, in which one object may occur many times.

        Raises:
            RenderingLimitError: It is too large.
        """
        if isinstance(value, str):
            self.check(len(value))
            return len(value)
        size, waiting = 0, [(value, 1)]
        while waiting:
            one, depth = waiting.pop()
            parts = _parts(one)
            # Parts count before they are looked at, so that the list of them is no longer than the limit.
            size += _own_size(one) + depth * indent + len(parts) * _PART_SIZE
            self.check(size)
            waiting += [(part, depth + 1) for part in parts]
        if size > _MAX_VALUE_CHARACTERS // 100:
            self.check_time()
        return size


def _own_size(value: Any) -> int:
    if isinstance(value, str):
        return len(value)
    return max(8, value.bit_length() // 3) if isinstance(value, int) else 8


def _check_printed(size: int) -> None:
    if size > MAX_RENDERED_CHARACTERS:
        raise RenderingLimitError(f"its text has more than {MAX_RENDERED_CHARACTERS:,} characters")


def _parts(value: Any) -> Sequence[Any]:
    if isinstance(value, Namespace):
        value = getattr(value, "_Namespace__attrs", {})
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list | tuple) else ()


# What the environment's hooks check


def _check_product(rendering: _Rendering, left: Any, right: Any) -> None:
    for count, value in ((left, right), (right, left)):
        if isinstance(count, int) and isinstance(value, str | list | tuple):
            rendering.check(max(count, 0) * max(rendering.weigh(value), 1))
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())


def _check_power(left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int) and right > 0:
        _check_bits(left.bit_length() * right)


def _check_bits(bits: int) -> None:
    if bits > _MAX_BITS:
        raise RenderingLimitError(f"it computes a number of more than {_MAX_BITS:,} bits")


def _check_format(text: str) -> None:
    if _FORMAT_WIDTH.search(text):
        raise SecurityError("a format has too wide or nested fields")


def _check_formatted(rendering: _Rendering, text: str, *values: Any) -> None:
    """Each field may print all values."""
    fields = text.count("%") + text.count("{")
    rendering.check(len(text) + fields * (_MAX_WIDTH + sum(map(rendering.weigh, values))))


def _check_numbers(arguments: Iterable[Any]) -> None:
    if any(isinstance(one, int) and abs(one) > _MAX_NUMBER for one in arguments):
        raise SecurityError(f"a filter is given a number above {_MAX_NUMBER:,}")


def _check_replaced(rendering: _Rendering, text: str, old: str, new: str) -> None:
    rendering.check(len(text) + text.count(old) * len(new))


def _joined_items(rendering: _Rendering, separator: str, items: Iterable[Any]) -> list[Any]:
    listed = list(items)
    rendering.check(rendering.weigh(listed) + len(separator) * len(listed))
    return listed


def _checked_arguments(
    rendering: _Rendering, text: str, name: str, arguments: tuple[Any, ...], named: Mapping[str, Any]
) -> tuple[Any, ...]:
    """The arguments of a method of a text, which does not make too large a text."""
    numbers = [one for one in (*arguments, *named.values()) if isinstance(one, int)]
    match name:
        case "translate" | "encode" | "maketrans":
            raise SecurityError(f"{name} is not available to chat templates")
        case "expandtabs":
            rendering.check(len(text) + text.count("\t") * max([8, *numbers]))
        case "replace" if len(arguments) > 1:
            _check_replaced(rendering, text, str(arguments[0]), str(arguments[1]))
        case "join" if arguments:
            return (_joined_items(rendering, text, arguments[0]), *arguments[1:])
        case "ljust" | "rjust" | "center" | "zfill":
            rendering.check(max([0, *numbers]))
    return arguments


class _Environment(ImmutableSandboxedEnvironment):
    """Transformers' environment of chat templates, with limits."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        rendering: _Rendering = context[_RENDERING]
        rendering.step()
        match operator:
            case "*":
                _check_product(rendering, left, right)
            case "**":
                _check_power(left, right)
            case "%" if isinstance(left, str):
                _check_format(left)
                _check_formatted(rendering, left, right)
        result = super().call_binop(context, operator, left, right)
        if operator in "+%" and not isinstance(result, int | float):
            rendering.weigh(result)
        return result

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  as in Jinja
        rendering: _Rendering = __context[_RENDERING]
        rendering.step()
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            args = _checked_arguments(rendering, owner, name, args, kwargs)
        elif name in ("format", "format_map") and hasattr(__obj, "__wrapped__"):
            _check_formatted(rendering, __obj.__wrapped__.__self__, *args, *kwargs.values())
        elif name == "to_bytes":
            raise SecurityError("to_bytes is not available to chat templates")
        result = super().call(__context, __obj, *args, **kwargs)
        if not isinstance(owner, Mapping | list | tuple):  # their methods return what is in them
            rendering.weigh(result)
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            _check_format(value.__self__)
        return wrapped

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Joins what a macro or a block has printed."""
        texts = list(parts)
        _check_printed(sum(map(len, texts)))
        return "".join(texts)


def _limited_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    passed = getattr(getattr(function, "jinja_pass_arg", None), "name", None)

    @pass_context
    @wraps(function)
    def limited(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        rendering: _Rendering = context[_RENDERING]
        rendering.step()
        if name in _PASSING_FILTERS:
            leading = _leading(passed, context)
            return function(*leading, value, *args, **kwargs)
        named = list(kwargs.values())
        _check_numbers([*args, *named])
        for one in (value, *args, *named):
            rendering.weigh(one)
        match name:
            case "format":
                _check_format(str(value))
                _check_formatted(rendering, str(value), *args, *named)
            case "replace" if len(args) > 1:
                _check_replaced(rendering, str(value), str(args[0]), str(args[1]))
            case "join":
                value = _joined_items(rendering, str(args[0] if args else kwargs.get("d", "")), value)
            case "indent":
                width = args[0] if args else kwargs.get("width", 4)
                width = width if isinstance(width, int) else len(str(width))
                rendering.check(rendering.weigh(value) + (str(value).count("\n") + 1) * width)
            case "sum" if not isinstance(args[1] if len(args) > 1 else kwargs.get("start", 0), int | float):
                raise SecurityError("sum adds up numbers only")
        result = function(*_leading(passed, context), value, *args, **kwargs)
        rendering.weigh(result)
        return result

    # `wraps` copies what the function itself is passed.
    limited.jinja_pass_arg = pass_context(lambda: None).jinja_pass_arg  # type: ignore[attr-defined]
    return limited


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
    context[_RENDERING].weigh(value, indent if isinstance(indent, int) else len(indent or ""))
    text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
    return re.sub(r"[\x7f-\U000effff\U00100000-\U0010ffff]", _escaped, text) if ensure_ascii else text


def _escaped(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1]


@pass_context
def _iterated(context: Context, items: Iterable[Any], body_characters: int) -> Iterator[Any]:
    rendering: _Rendering = context[_RENDERING]
    for item in items:
        rendering.loop(body_characters)
        yield item


@pass_context
def _made(context: Context, value: Any) -> Any:
    context[_RENDERING].weigh(value)
    return value


@pass_context
def _joined(context: Context, *values: Any) -> str:
    rendering: _Rendering = context[_RENDERING]
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


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _make_environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=_printed
    )  # autoescape is off: a prompt is no HTML
    del environment.globals["lipsum"]
    environment.globals.update(
        raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_Dict(), namespace=_Namespace
    )
    kept = {name: one for name, one in environment.filters.items() if name not in _REMOVED_FILTERS}
    environment.filters = {
        **{name: _limited_filter(name, one) for name, one in {**kept, "tojson": _tojson}.items()},
        _ITERATED: _iterated,
        _MADE: _made,
        _JOINED: _joined,
    }
    return environment


_ENVIRONMENT = _make_environment()


@lru_cache(maxsize=256)
def _compiled(source: str) -> JinjaTemplate:
    if len(source) > MAX_TEMPLATE_CHARACTERS:
        raise RenderingLimitError(f"it has more than {MAX_TEMPLATE_CHARACTERS:,} characters itself")
    tree = _Limits().visit(_ENVIRONMENT.parse(source))
    return _ENVIRONMENT.from_string(tree)
