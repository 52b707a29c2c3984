"""A text template in one or two languages, in the syntax of Jinja.

Templates run in Jinja's immutable sandbox, without globals. The values of fields are never rendered as templates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import StrictUndefined, TemplateError, meta, nodes, pass_context
from jinja2 import Template as JinjaTemplate
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from adapterhub.errors import ToolError

Language = Literal["en", "ru"]
FieldValue = str | list[str] | list[dict[str, str]]
"""The value of a field: a text, a list of texts, or a list of entries that have fields themselves."""

MAX_CHARACTERS = 20_000
_MISSING = "_missing"


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

    Args:
        texts: The template by language.
        description: What it is for, in a few words.

    Raises:
        ToolError: A text is empty, too long, or not valid Jinja.
    """

    def __init__(self, texts: Mapping[Language, str], description: str = "") -> None:
        if not texts or not all(texts.values()):
            raise ToolError("A template has a text in at least one language.")
        if max(map(len, texts.values())) > MAX_CHARACTERS:
            raise ToolError(f"A template has at most {MAX_CHARACTERS} characters.")
        self.texts = dict(texts)
        self.description = description
        required: dict[str, None] = {}
        optional: dict[str, None] = {}
        self._looped: set[str] = set()
        self._compiled: dict[Language, JinjaTemplate] = {}
        for language, text in texts.items():
            try:
                tree = _ENVIRONMENT.parse(text)
                self._compiled[language] = _ENVIRONMENT.from_string(text)
            except TemplateError as error:
                raise ToolError(
                    f"The template is not valid: {error.message}.",
                    hint="Templates are in the syntax of Jinja.",
                ) from error
            fields = _Fields(tree)
            required.update(dict.fromkeys(fields.required))
            optional.update(dict.fromkeys(fields.optional))
            self._looped |= fields.looped
        self.required = tuple(required)
        """The fields that are always printed, in order."""
        self.optional = tuple(name for name in optional if name not in required)
        """The other fields."""

    def render(self, fields: Mapping[str, FieldValue], language: Language = "en") -> RenderedTemplate:
        """Renders the template.

        Args:
            fields: Values by name.
            language: The language of the template's own words; if the template lacks it, its first language.

        Raises:
            ToolError: An expression of the template fails with these values.
        """
        compiled = self._compiled.get(language) or next(iter(self._compiled.values()))
        missing: dict[str, None] = {}
        known = {name: self._prepare(name, fields[name]) for name in self._names() if name in fields}
        defaults = dict.fromkeys(self.optional, "")
        try:
            text = compiled.render({**defaults, **known, _MISSING: missing})
        except Exception as error:
            raise ToolError(f"The template could not be rendered: {error}.") from error
        unknown = tuple(name for name in fields if name not in known)
        return RenderedTemplate(text.strip("\n"), tuple(missing), unknown)

    def _names(self) -> tuple[str, ...]:
        return (*self.required, *self.optional)

    def _prepare(self, name: str, value: FieldValue) -> Any:
        if isinstance(value, str):
            return [_Entry(name, value)] if value and name in self._looped else value
        return [_Entry(name, item) for item in value]


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


@pass_context
def _to_text(context: Context, value: Any) -> Any:
    """Converts a printed value: lists become bullet points, a field without a value is recorded and stays visible."""
    if isinstance(value, Undefined):
        name, entry = str(value._undefined_name), value._undefined_obj
        name = entry.missing_field(name) if isinstance(entry, _Entry) else name
        context[_MISSING][name] = None
        return f"{{{{ {name} }}}}"
    return "\n".join(f"- {item}" for item in value) if isinstance(value, list) else value


def _make_environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        autoescape=False,  # the texts are no HTML
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_to_text,
    )
    environment.globals.clear()
    return environment


_ENVIRONMENT = _make_environment()
