"""A collection of templates by name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Protocol, Self, get_args

import yaml

from adapterhub.agent_tools.templates.json_schema_template import JsonSchemaTemplate
from adapterhub.agent_tools.templates.template import Language, RenderedTemplate, Template
from adapterhub.errors import ToolError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


class TemplateLike(Protocol):
    """Anything that can be rendered."""

    @property
    def description(self) -> str:
        """What it is for, in a few words."""

    @property
    def required(self) -> tuple[str, ...]:
        """The required fields."""

    @property
    def optional(self) -> tuple[str, ...]:
        """The optional fields."""

    def render(self, fields: Mapping[str, Any], language: Language = "en") -> RenderedTemplate:
        """Renders it."""


class TemplateCollection(Mapping[str, TemplateLike]):
    """The built-in templates by name, and those added with `with_template`; it is immutable."""

    def __init__(self) -> None:
        self._templates: dict[str, TemplateLike] = dict(_builtin_templates())

    def __getitem__(self, name: str) -> TemplateLike:
        return self._templates[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._templates)

    def __len__(self) -> int:
        return len(self._templates)

    def with_template(self, name: str, text: str | Mapping[Language, str], description: str = "") -> Self:
        """Returns a collection with one more template, which replaces one of the same name.

        Args:
            name: Lower-case letters, digits and underscores.
            text: The template in a subset of Jinja, one for both languages or one for each; see `Template`.
            description: What it is for, in a few words; agents read it.

        Raises:
            ToolError: The name or the template is not valid.
        """
        if not _NAME.fullmatch(name):
            raise ToolError(
                f"{name!r} is not valid as the name of a template.",
                hint="Use lower-case letters, digits and _.",
            )
        texts = {"en": text} if isinstance(text, str) else dict(text)
        if unknown := texts.keys() - set(get_args(Language)):
            raise ToolError(f"Templates are in en or ru, not in {', '.join(sorted(unknown))}.")
        extended = type(self)()
        extended._templates = {**self._templates, name: Template(texts, description)}  # type: ignore[arg-type]
        return extended


@cache
def _builtin_templates() -> Mapping[str, TemplateLike]:
    source = yaml.safe_load(files(__package__).joinpath("builtin.yaml").read_text(encoding="utf-8"))
    texts = {
        name: Template({"en": part["en"], "ru": part["ru"]}, part.get("description", ""))
        for name, part in source.items()
    }
    return {**texts, "json_schema": JsonSchemaTemplate()}
