"""The templates that a program can choose from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Protocol, Self, get_args

import yaml

from adapterhub.agent_tools.templates.schema_template import SchemaTemplate
from adapterhub.agent_tools.templates.template import FieldValue, Language, Rendered, Template
from adapterhub.errors import ConfigError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


class AnyTemplate(Protocol):
    """What can be filled in."""

    @property
    def description(self) -> str:
        """What it is for, in a few words."""

    @property
    def required(self) -> tuple[str, ...]:
        """The fields that it needs."""

    @property
    def optional(self) -> tuple[str, ...]:
        """The fields that it may have."""

    def render(self, fields: Mapping[str, FieldValue], language: Language = "en") -> Rendered:
        """Fills it in."""


class Templates(Mapping[str, AnyTemplate]):
    """Templates by name: those of the package, and those added with `with_template`; it never changes."""

    def __init__(self) -> None:
        self._templates: dict[str, AnyTemplate] = dict(_shipped())

    def __getitem__(self, name: str) -> AnyTemplate:
        return self._templates[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._templates)

    def __len__(self) -> int:
        return len(self._templates)

    def with_template(self, name: str, text: str | Mapping[Language, str], description: str = "") -> Self:
        """These templates and one more, which replaces one of the same name.

        Args:
            name: Lower-case letters, digits and underscores.
            text: The template, one for both languages or one for each; see `Template`.
            description: What it is for, in a few words; agents read it.

        Raises:
            ConfigError: The name or the template is not valid.
        """
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} is no name for a template.", hint="Use lower-case letters, digits and _."
            )
        texts = {"en": text} if isinstance(text, str) else dict(text)
        if unknown := texts.keys() - set(get_args(Language)):
            raise ConfigError(f"Templates are in en or ru, not in {', '.join(sorted(unknown))}.")
        more = type(self)()
        more._templates = {**self._templates, name: Template(texts, description)}  # type: ignore[arg-type]
        return more


@cache
def _shipped() -> Mapping[str, AnyTemplate]:
    source = yaml.safe_load(files(__package__).joinpath("shipped.yaml").read_text(encoding="utf-8"))
    texts = {
        name: Template({"en": part["en"], "ru": part["ru"]}, part["is"]) for name, part in source.items()
    }
    return {**texts, "json_schema": SchemaTemplate()}
