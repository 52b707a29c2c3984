"""Rules about prose and Markdown: length, language, headings, sections, tables, placeholders."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

import regex
from pydantic import Field, StringConstraints

from adapterhub._deadline import Deadline
from adapterhub._patterns import all_matches, first_match
from adapterhub.agent_tools.content_rules.base_rule import BaseRule, abbreviate, unfenced_lines
from adapterhub.agent_tools.content_rules.headings import comparable, headings
from adapterhub.agent_tools.content_rules.report import Violation

Title = Annotated[str, StringConstraints(min_length=1, max_length=200)]
_DELIMITER_ROW = regex.compile(r"\s*\|?(?:\s*:?-+:?\s*\|)+(?:\s*:?-+:?\s*)?$")
_ESCAPED = regex.compile(r"\\.")
_LETTERS = {"en": regex.compile("[A-Za-z]+"), "ru": regex.compile("[А-Яа-яЁё]+")}
# Zero-width and control characters are not visible.
_VISIBLE = regex.compile(r"[^\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2060\ufeff]")
# Bracketed words count if they name what is to be filled in, and are no link: `[Company Name]`, `[Дата]`.
_WORD, _GAP = r"[^\W_][^\W_]{0,29}(?:['’.-][^\W_]{1,29}){0,2}", r"(?:, ?|[ _/-])"
_NOUN = (
    r"(?:name|title|date|company|organi[sz]ation|institution|university|school|department|position|role|recipient|sender"
    r"|client|customer|address|street|city|state|country|zip|phone|number|e-?mail|website|url|link|signature|amount|price"
    r"|product|topic|location|time|year)s?"
)
_RUSSIAN_NOUN = (
    "(?:имя|фамилия|отчество|фио|название|наименование|дата|компания|организация|должность|адрес|город|телефон|номер"
    "|подпись|сумма|почта|получатель|отправитель)"
)
# A link's target, after its label.
_TARGET = r":[ \t]*(?:https?:|[<./#])"
_DEFINITION = regex.compile(rf"^ {{0,3}}\[([^\[\]\n]{{1,200}})\]{_TARGET}", regex.MULTILINE)
_PLACEHOLDER = regex.compile(
    r"\{\{[^{}\n]{1,80}\}\}|\$\{\w{1,80}\}|\b(?:TODO|XXX)\b|(?i:\b(?:TBD|FIXME|лорем ипсум|lorem ipsum)\b)"
    r"|(?i:[\[<](?:your|insert|enter|ваш[аеи]?|вставьте|укажите|введите)\b[^\[\]<>\n]{0,80}[\]>])"
    rf"|(?<![\[\]!\w])\[(?=\p{{Lu}})(?:(?:{_WORD}{_GAP}){{0,4}}(?i:{_NOUN})(?:[ _](?i:here|\d{{1,2}})|{_GAP}(?i:of|and)"
    rf"(?:{_GAP}{_WORD}){{1,3}})?|(?i:{_RUSSIAN_NOUN})(?:{_GAP}{_WORD}){{0,3}})\](?![(\[]|{_TARGET})"
)


class NotEmpty(BaseRule):
    """The text is not blank."""

    rule: Literal["not_empty"] = "not_empty"

    def check(self, text: str, deadline: Deadline) -> Violation | None:
        return None if first_match(_VISIBLE, text, deadline) else Violation("the text is empty")


class Length(BaseRule):
    """Bounds of the text's length."""

    rule: Literal["length"] = "length"
    unit: Literal["characters", "words", "lines"] = "characters"
    """What counts."""
    minimum: int = Field(0, ge=0, le=10_000_000)
    """At least."""
    maximum: int | None = Field(None, ge=0, le=10_000_000)
    """At most."""

    def check(self, text: str, deadline: Deadline) -> Violation | None:
        count = self._count(text)
        if count < self.minimum:
            return Violation(f"{count} {self.unit}, fewer than {self.minimum}")
        if self.maximum is not None and count > self.maximum:
            return Violation(f"{count} {self.unit}, more than {self.maximum}")
        return None

    def _count(self, text: str) -> int:
        if self.unit == "lines":
            return text.count("\n") + bool(text and not text.endswith("\n"))
        return len(text) if self.unit == "characters" else len(text.split())


class LanguageRule(BaseRule):
    """Most letters are of the language's script."""

    rule: Literal["language"] = "language"
    language: Literal["en", "ru"]
    """English or Russian."""
    share: float = Field(0.7, ge=0.0, le=1.0)
    """The minimum share of letters."""

    def check(self, text: str, deadline: Deadline) -> Violation | None:
        letters = {
            name: sum(match.end() - match.start() for match in all_matches(script, text, deadline))
            for name, script in _LETTERS.items()
        }
        total = sum(letters.values()) if text.isascii() else sum(map(str.isalpha, deadline.limit(text)))
        if not total:
            return Violation("the text has no letters")
        share = letters[self.language] / total
        if share >= self.share:
            return None
        return Violation(
            f"{share:.0%} of the letters are in the script of {self.language}, fewer than {self.share:.0%}"
        )


class HasHeadings(BaseRule):
    """Markdown headings."""

    rule: Literal["has_headings"] = "has_headings"
    minimum: int = Field(1, ge=1, le=1000)
    """At least."""
    level: int | None = Field(None, ge=1, le=6)
    """The level that counts, 1 for `#`."""

    def check(self, text: str, deadline: Deadline) -> Violation | None:
        count = sum(self.level in (None, heading.level) for heading in headings(text, deadline))
        level = f" of level {self.level}" if self.level else ""
        return (
            None
            if count >= self.minimum
            else Violation(f"{count} headings{level}, fewer than {self.minimum}")
        )


class RequiredSections(BaseRule):
    """Headings of these titles, in any case and markup."""

    rule: Literal["required_sections"] = "required_sections"
    sections: list[Title] = Field(min_length=1, max_length=50)
    """Titles."""
    in_order: bool = False
    """In this order."""

    def check(self, text: str, deadline: Deadline) -> Violation | None:
        titles = [_comparable(heading.title, deadline) for heading in headings(text, deadline)]
        required = [comparable(section) for section in self.sections]
        missing = [
            abbreviate(name)
            for name, title in zip(self.sections, required, strict=True)
            if title not in titles
        ]
        if missing:
            return Violation(f"missing sections: {abbreviate(', '.join(missing), 300)}")
        indices = [titles.index(title) for title in required]
        return (
            Violation("the sections are in another order")
            if self.in_order and indices != sorted(indices)
            else None
        )


class MarkdownTable(BaseRule):
    """A Markdown table; all rows of all tables have as many cells as their header."""

    rule: Literal["markdown_table"] = "markdown_table"
    columns: list[Title] | None = Field(None, min_length=1, max_length=100)
    """Header cells of the first table."""
    minimum_rows: int = Field(1, ge=0, le=100_000)
    """At least, for each table."""

    def check(self, text: str, deadline: Deadline) -> Violation | None:
        lines = list(unfenced_lines(text, deadline))
        tables = [
            index
            for index in range(1, len(lines))
            if "-" in lines[index][1] and self._is_delimiter(lines, index, deadline)
        ]
        if not tables:
            return Violation("there is no Markdown table")
        header = _cells(lines[tables[0] - 1][1])
        if self.columns is not None and [*map(comparable, header)] != [*map(comparable, self.columns)]:
            return Violation(
                f"the table has the columns {abbreviate(', '.join(header), 200)}", lines[tables[0] - 1][0]
            )
        violations = (self._check_rows(lines, index, deadline) for index in tables)
        return next((violation for violation in violations if violation), None)

    def _is_delimiter(self, lines: list[tuple[int, str]], index: int, deadline: Deadline) -> bool:
        deadline.check()
        above, here = lines[index - 1][1], lines[index][1]
        delimited = "|" in above and set(here) <= set(" \t\r|:-") and _DELIMITER_ROW.match(here)
        return bool(delimited) and len(_cells(above)) == len(_cells(here))

    def _check_rows(self, lines: list[tuple[int, str]], index: int, deadline: Deadline) -> Violation | None:
        width, rows = len(_cells(lines[index][1])), 0
        for offset, line in deadline.limit(lines[index + 1 :]):
            if "|" not in line:
                break
            if len(_cells(line)) != width:
                return Violation(f"the row has {len(_cells(line))} cells, its header {width}", offset)
            rows += 1
        if rows < self.minimum_rows:
            return Violation(
                f"the table has {rows} rows, fewer than {self.minimum_rows}", lines[index - 1][0]
            )
        return None


class NoPlaceholders(BaseRule):
    """No placeholder such as `{{name}}`, `[Company Name]` or `TODO` is left."""

    rule: Literal["no_placeholders"] = "no_placeholders"

    def check(self, text: str, deadline: Deadline) -> Violation | None:
        links: set[str] | None = None
        for match in all_matches(_PLACEHOLDER, text, deadline):
            if links is None:
                links = {found[1].casefold() for found in all_matches(_DEFINITION, text, deadline)}
            if match[0][1:-1].casefold() not in links:
                return Violation(f"the placeholder {abbreviate(match[0])} is left", match.start())
        return None


def _comparable(title: str, deadline: Deadline) -> str:
    deadline.check()  # hostile markup of one title takes up to 10 ms
    return comparable(title)


def _cells(row: str) -> list[str]:
    """The cells of a table's row; `\\|` does not separate cells."""
    masked = _ESCAPED.sub("xx", row.strip())
    edges = [0, *(index + 1 for index, char in enumerate(masked) if char == "|"), len(masked) + 1]
    cells = [row.strip()[start : end - 1].strip() for start, end in pairwise(edges)]
    return cells[masked.startswith("|") : len(cells) - (masked.endswith("|") and len(cells) > 1)]
