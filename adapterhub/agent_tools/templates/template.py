"""A text with placeholders, in one or two languages.

The notation is a part of Mustache (https://mustache.github.io/mustache.5.html): `{{name}}` is a placeholder;
`{{#name}}...{{/name}}` is a section, written only if the field is there, and once for each entry of a list. A template
is read once and what is filled in is never read again, so a value that looks like a placeholder stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from adapterhub.errors import ConfigError

Language = Literal["en", "ru"]
FieldValue = str | list[str] | list[dict[str, str]]
"""What fills a placeholder or section: a text, a list of texts, or a list of entries that have fields themselves."""

MAX_CHARACTERS = 20_000
_NAME = r"[A-Za-z_]\w{0,63}"
_TOKEN = re.compile(rf"{{{{#({_NAME})}}}}\n?(.*?){{{{/\1}}}}\n?|{{{{({_NAME})}}}}", re.DOTALL | re.ASCII)
_LOOKS_LIKE_TOKEN = re.compile(r"\{\{[#/]")


@dataclass(frozen=True)
class Rendered:
    """A template that has been filled in.

    Attributes:
        text: The result; a placeholder without a value stays, so that it is seen.
        missing: Placeholders without a value, in the template's order; `examples.input` is one within a section.
        unknown: Fields that the template has no place for.
    """

    text: str
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Template:
    """A text with placeholders.

    Attributes:
        texts: The template by language.
        description: What it is for, in a few words.

    Raises:
        ConfigError: A text is empty or too long, or a section is not closed.
    """

    texts: Mapping[Language, str]
    description: str = ""
    required: tuple[str, ...] = field(init=False)
    optional: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not self.texts or not all(self.texts.values()):
            raise ConfigError("A template has a text in at least one language.")
        if max(map(len, self.texts.values())) > MAX_CHARACTERS:
            raise ConfigError(f"A template has at most {MAX_CHARACTERS} characters.")
        if any(_LOOKS_LIKE_TOKEN.search(_without_tokens(text)) for text in self.texts.values()):
            raise ConfigError("A section of the template is not closed.", hint="Write {{#name}}...{{/name}}.")
        matches = [match for text in self.texts.values() for match in _TOKEN.finditer(text)]
        required = dict.fromkeys(match[3] for match in matches if match[3])
        optional = dict.fromkeys(match[1] for match in matches if match[1] and match[1] not in required)
        object.__setattr__(self, "required", tuple(required))
        object.__setattr__(self, "optional", tuple(optional))

    def render(self, fields: Mapping[str, FieldValue], language: Language = "en") -> Rendered:
        """Fills in the template.

        Args:
            fields: Values by name.
            language: The language of the template's own words; the first that it has, where it lacks this one.
        """
        missing: dict[str, None] = {}
        source = self.texts.get(language) or next(iter(self.texts.values()))
        text = _fill(source, fields, missing, "")
        known = {*self.required, *self.optional}
        return Rendered(text.strip("\n"), tuple(missing), tuple(name for name in fields if name not in known))


def _without_tokens(text: str) -> str:
    return _TOKEN.sub(lambda match: _without_tokens(match[2]) if match[1] else "", text)


def _fill(source: str, scope: Mapping[str, FieldValue], missing: dict[str, None], place: str) -> str:
    def token(match: re.Match[str]) -> str:
        section, inner, name = match.groups()
        if section:
            return "".join(
                _fill(inner, {**scope, **entry}, missing, f"{section}.")
                for entry in _entries(section, scope.get(section))
            )
        if name in scope:
            return _written(scope[name])
        missing[place + name] = None
        return match[0]

    return _TOKEN.sub(token, source)


def _entries(name: str, value: FieldValue | None) -> list[Mapping[str, FieldValue]]:
    """What a section is written for: each entry of a list of entries, and once for any other value."""
    if not value:
        return []
    if isinstance(value, list) and isinstance(value[0], dict):
        return [entry for entry in value if isinstance(entry, dict)]
    return [{name: value}]


def _written(value: FieldValue) -> str:
    if isinstance(value, str):
        return value
    lines = (
        item if isinstance(item, str) else ", ".join(f"{key}: {part}" for key, part in item.items())
        for item in value
    )
    return "\n".join(f"- {line}" for line in lines)
