"""A text template in one or two languages, in a subset of Jinja.

Templates run in Jinja's immutable sandbox, without globals, calls, assignments and arithmetic, and within limits on
their time and their text. The values of fields are never rendered as templates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jinja2 import StrictUndefined, TemplateAssertionError, TemplateError, meta, nodes, pass_context
from jinja2 import Template as JinjaTemplate
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from adapterhub._deadline import Deadline, DeadlineExceededError
from adapterhub.agent_tools.templates.fields import FieldValue, field_values
from adapterhub.errors import ToolError

Language = Literal["en", "ru"]

MAX_CHARACTERS = 20_000
MAX_RENDERED_CHARACTERS = 4_000_000
MAX_RENDER_SECONDS = 1.0
"""Processor time of one rendering; the built-in templates take less than a millisecond."""
# Names with a space, which no template can refer to.
_RENDERING, _LIMITED, _ITERATED = "the rendering", "the limited value", "the limited items"
_NODES = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For),
    *(nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem, nodes.Filter, nodes.Test),
    *(nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not),
)
_FILTERS = ("capitalize", "default", "first", "join", "last", "length", "lower", "title", "trim", "upper")
_HINT = f"Use printed fields, if, for, comparisons, tests, and the filters {', '.join(_FILTERS)}."


@dataclass(frozen=True)
class RenderedTemplate:
    """The result of rendering a template.

    Attributes:
        text: The text; a field without a value stays visible as `{{ name }}`.
        missing: Fields without a value, in the template's order; `examples.input` is a field of an entry.
        unknown: Given fields that the template does not have.
    """

    text: str
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


class Template:
    """A text template.

    A field that is only printed within an `{% if %}` on itself, or looped over, is optional; others are required.
    The subset of Jinja: printed fields, `if`, `for`, comparisons, tests, and the filters capitalize, default, first,
    join, last, length, lower, title, trim and upper.

    Args:
        texts: The template by language.
        description: What it is for, in a few words.

    Raises:
        ToolError: A text is empty, too long, not valid Jinja, or not in the subset.
    """

    def __init__(self, texts: Mapping[Language, str], description: str = "") -> None:
        if not texts or not all(texts.values()):
            raise ToolError("A template has a text in at least one language.")
        if max(map(len, texts.values())) > MAX_CHARACTERS:
            raise ToolError(f"A template may have {MAX_CHARACTERS:,} characters.")
        self.texts = dict(texts)
        self.description = description
        required: dict[str, None] = {}
        optional: dict[str, None] = {}
        self._looped: set[str] = set()
        self._compiled: dict[Language, JinjaTemplate] = {}
        for language, text in texts.items():
            try:
                tree = _ENVIRONMENT.parse(text)
                _check_nodes(tree)
                fields = _Fields(tree)
                self._compiled[language] = _ENVIRONMENT.from_string(_with_limits(tree))
            except (TemplateError, ValueError) as error:  # ValueError: a number is too long
                reason = str(error.message if isinstance(error, TemplateError) else error).rstrip(".")
                raise ToolError(f"The template is not valid: {reason}.", hint=_HINT) from error
            except (RecursionError, SyntaxError) as error:  # SyntaxError: of the compiled code
                raise ToolError("The template is not valid: it is nested too deeply.") from error
            required.update(dict.fromkeys(fields.required))
            optional.update(dict.fromkeys(fields.optional))
            self._looped |= fields.looped
        self.required = tuple(required)
        """The fields that are always printed, in order."""
        self.optional = tuple(name for name in optional if name not in required)
        """The other fields."""

    def render(self, fields: Mapping[str, Any], language: Language = "en") -> RenderedTemplate:
        """Renders the template.

        Args:
            fields: Values by name: texts, numbers, lists of them, or lists of entries that have fields. None is none.
            language: The language of the template's own words; if the template lacks it, its first language.

        Raises:
            ToolError: A value cannot be rendered, an expression of the template fails with these values, or the
                rendering exceeds its limits.
        """
        fields = field_values(fields)
        compiled = self._compiled.get(language) or next(iter(self._compiled.values()))
        rendering = _Rendering()
        known = {name: self._prepare(name, fields[name]) for name in self._names() if name in fields}
        defaults = dict.fromkeys(self.optional, "")
        try:
            text = rendering.join(compiled.generate({**defaults, **known, _RENDERING: rendering}))
        except DeadlineExceededError as error:
            raise ToolError(
                f"The template could not be rendered: it takes more than {MAX_RENDER_SECONDS:g} s."
            ) from error
        except Exception as error:
            raise ToolError(f"The template could not be rendered: {error}.") from error
        unknown = tuple(name for name in fields if name not in known)
        return RenderedTemplate(text.strip("\n"), tuple(rendering.missing), unknown)

    def _names(self) -> tuple[str, ...]:
        return (*self.required, *self.optional)

    def _prepare(self, name: str, value: FieldValue) -> Any:
        if isinstance(value, str):
            return [_Entry(name, value)] if value and name in self._looped else value
        return [_Entry(name, item) for item in value]


class _TooLongError(Exception):
    """The rendered text is too long."""


@dataclass
class _Rendering:
    """The state of one rendering: its deadline, and the fields found missing."""

    missing: dict[str, None] = field(default_factory=dict)
    deadline: Deadline = field(default_factory=lambda: Deadline(MAX_RENDER_SECONDS))

    def check_size(self, characters: int) -> None:
        if characters > MAX_RENDERED_CHARACTERS:
            raise _TooLongError(f"its text has more than {MAX_RENDERED_CHARACTERS:,} characters")

    def join(self, chunks: Iterable[str]) -> str:
        """The chunks as one text."""
        parts: list[str] = []
        total = 0
        for chunk in chunks:
            total += len(chunk)
            self.deadline.check()
            self.check_size(total)
            parts.append(chunk)
        return "".join(parts)


class _Entry:
    """An item of a list. Its fields are items only: as attributes, `{{ entry.items }}` would be a method."""

    def __init__(self, list_name: str, value: str | Mapping[str, str]) -> None:
        self._list_name = list_name
        self._value = value

    def __getitem__(self, name: str) -> str:
        if isinstance(self._value, str):
            raise KeyError(name)
        return self._value[name]

    def __str__(self) -> str:
        if isinstance(self._value, str):
            return self._value
        return ", ".join(f"{name}: {value}" for name, value in self._value.items())

    def missing_field(self, name: str) -> str:
        return f"{self._list_name}.{name}"


class _Fields:
    """The fields of a parsed template."""

    def __init__(self, tree: nodes.Template) -> None:
        self.required: list[str] = []
        self.optional: list[str] = []
        self.looped: set[str] = set()
        self._undeclared = meta.find_undeclared_variables(tree)
        self._visit(tree, frozenset())

    def _visit(self, node: nodes.Node, tested: frozenset[str]) -> None:
        if isinstance(node, nodes.Name):
            if node.name in self._undeclared and node.name not in tested:
                self.required.append(node.name)
            return
        if isinstance(node, nodes.If):
            names = self._names(node.test)
            self.optional += names
            for child in node.body:
                self._visit(child, tested.union(names))
            for child in (*node.elif_, *node.else_):
                self._visit(child, tested)
            return
        if isinstance(node, nodes.For):
            names = self._names(node.iter)
            self.optional += names
            self.looped.update(names)
            for child in (*node.body, *node.else_):
                self._visit(child, tested.union(names))
            return
        for child in node.iter_child_nodes():
            self._visit(child, tested)

    def _names(self, node: nodes.Node) -> list[str]:
        return [name for name in _variables(node) if name in self._undeclared]


def _variables(node: nodes.Node) -> Iterator[str]:
    if isinstance(node, nodes.Name):
        yield node.name
    for found in node.find_all(nodes.Name):
        yield found.name


def _check_nodes(tree: nodes.Template) -> None:
    """Refuses what is not in the subset, before the compiler evaluates constant expressions."""
    for node in tree.find_all(nodes.Node):
        if not isinstance(node, _NODES):
            raise TemplateAssertionError(f"{type(node).__name__} is not supported", node.lineno)


def _with_limits(tree: nodes.Template) -> nodes.Template:
    """Adds the checks of the limits: each item of a loop, and each value that is filtered."""
    for loop in [*tree.find_all(nodes.For)]:
        loop.iter = _filtered(loop.iter, _ITERATED)
    for applied in [*tree.find_all(nodes.Filter)]:
        if applied.node is not None and applied.name not in (_ITERATED, _LIMITED):
            applied.node = _filtered(applied.node, _LIMITED)
    return tree


def _filtered(node: Any, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=node.environment)


@pass_context
def _limited(context: Context, value: Any) -> Any:
    context[_RENDERING].deadline.check()
    return value


@pass_context
def _limited_items(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    rendering: _Rendering = context[_RENDERING]
    for item in items:
        rendering.deadline.check()
        yield item


@pass_context
def _join(context: Context, items: Iterable[Any], separator: str = "") -> str:
    """Jinja's `join`; its size is checked before the text is made."""
    texts = [str(item) for item in items]
    context[_RENDERING].check_size(sum(map(len, texts)) + len(texts) * len(separator))
    return separator.join(texts)


@pass_context
def _to_text(context: Context, value: Any) -> Any:
    """Converts a printed value: lists become bullet points, a field without a value is recorded and stays visible."""
    if isinstance(value, Undefined):
        name, entry = str(value._undefined_name), value._undefined_obj
        name = entry.missing_field(name) if isinstance(entry, _Entry) else name
        context[_RENDERING].missing[name] = None
        return f"{{{{ {name} }}}}"
    return "\n".join(f"- {item}" for item in value) if isinstance(value, list) else value


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox; only `loop` has attributes, all other values have items."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        return (
            super().getattr(obj, attribute) if isinstance(obj, LoopContext) else self.getitem(obj, attribute)
        )

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return isinstance(obj, LoopContext) and super().is_safe_attribute(obj, attr, value)


def _make_environment() -> _Environment:
    environment = _Environment(
        autoescape=False,  # the texts are no HTML
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_to_text,
    )
    environment.globals.clear()
    allowed = {name: environment.filters[name] for name in _FILTERS}
    environment.filters = {**allowed, "join": _join, _LIMITED: _limited, _ITERATED: _limited_items}
    return environment


_ENVIRONMENT = _make_environment()
