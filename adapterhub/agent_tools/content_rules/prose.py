"""Rules about what people read: length, language, headings, sections, tables, and what was left to fill in."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

import regex
from pydantic import Field, StringConstraints

from adapterhub.agent_tools.content_rules.clock import Clock
from adapterhub.agent_tools.content_rules.report import Fault
from adapterhub.agent_tools.content_rules.rule import BaseRule, prose_lines, shown
from adapterhub.agent_tools.content_rules.safe_patterns import all_matches, first_match

Title = Annotated[str, StringConstraints(min_length=1, max_length=200)]
_HEADING = regex.compile(r" {0,3}(#{1,6})[ \t]+(\S.*)")
_DELIMITER_ROW = regex.compile(r"\s*\|?(?:\s*:?-+:?\s*\|)+(?:\s*:?-+:?\s*)?$")
_ESCAPED = regex.compile(r"\\.")
_LETTERS = {"en": regex.compile("[A-Za-z]+"), "ru": regex.compile("[А-Яа-яЁё]+")}
_VISIBLE = regex.compile(
    r"[^\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2060\ufeff]"
)  # zero-width characters show nothing
_PLACEHOLDER = regex.compile(
    r"\{\{[^{}\n]{1,80}\}\}|\$\{\w{1,80}\}|\b(?:TODO|TBD|FIXME|XXX)\b|\bлорем ипсум\b|\blorem ipsum\b"
    r"|[\[<](?:your|insert|enter|ваш[аеи]?|вставьте|укажите|введите)\b[^\[\]<>\n]{0,80}[\]>]",
    regex.IGNORECASE,
)


class NotEmpty(BaseRule):
    """There is a visible character."""

    rule: Literal["not_empty"] = "not_empty"

    def check(self, text: str, clock: Clock) -> Fault | None:
        return None if first_match(_VISIBLE, text, clock) else Fault("the text is empty")


class Length(BaseRule):
    """The text has not too little and not too much."""

    rule: Literal["length"] = "length"
    unit: Literal["characters", "words", "lines"] = "characters"
    """What is counted."""
    minimum: int = Field(0, ge=0, le=10_000_000)
    """The least that there may be."""
    maximum: int | None = Field(None, ge=0, le=10_000_000)
    """The most that there may be."""

    def check(self, text: str, clock: Clock) -> Fault | None:
        found = self._count(text)
        if found < self.minimum:
            return Fault(f"{found} {self.unit}, fewer than {self.minimum}")
        if self.maximum is not None and found > self.maximum:
            return Fault(f"{found} {self.unit}, more than {self.maximum}")
        return None

    def _count(self, text: str) -> int:
        if self.unit == "lines":
            return text.count("\n") + bool(text and not text.endswith("\n"))
        return len(text) if self.unit == "characters" else len(text.split())


class LanguageRule(BaseRule):
    """Most letters belong to the language's alphabet; other languages of that alphabet pass too."""

    rule: Literal["language"] = "language"
    language: Literal["en", "ru"]
    """The language: English or Russian."""
    share: float = Field(0.7, ge=0.0, le=1.0)
    """The least share of letters that must be of its alphabet."""

    def check(self, text: str, clock: Clock) -> Fault | None:
        letters = {
            name: sum(match.end() - match.start() for match in all_matches(script, text, clock))
            for name, script in _LETTERS.items()
        }
        total = sum(letters.values()) if text.isascii() else sum(map(str.isalpha, clock.watch(text)))
        if not total:
            return Fault("the text has no letters")
        share = letters[self.language] / total
        if share >= self.share:
            return None
        return Fault(
            f"{share:.0%} of the letters are of the alphabet of {self.language}, fewer than {self.share:.0%}"
        )


class HasHeadings(BaseRule):
    """There are Markdown headings (`# Title`) outside code."""

    rule: Literal["has_headings"] = "has_headings"
    minimum: int = Field(1, ge=1, le=1000)
    """How many there must be."""
    level: int | None = Field(None, ge=1, le=6)
    """The level that counts, 1 for `#`; any if not given."""

    def check(self, text: str, clock: Clock) -> Fault | None:
        found = sum(self.level in (None, level) for level, _ in _headings(text, clock))
        kind = f" of level {self.level}" if self.level else ""
        return None if found >= self.minimum else Fault(f"{found} headings{kind}, fewer than {self.minimum}")


class RequiredSections(BaseRule):
    """Headings with these titles are there, in any case of letters."""

    rule: Literal["required_sections"] = "required_sections"
    sections: list[Title] = Field(min_length=1, max_length=50)
    """The titles."""
    in_order: bool = False
    """Whether they must come in this order."""

    def check(self, text: str, clock: Clock) -> Fault | None:
        titles = [title.rstrip("# \t\r").casefold() for _, title in _headings(text, clock)]
        wanted = [section.strip().casefold() for section in self.sections]
        missing = [
            shown(name) for name, title in zip(self.sections, wanted, strict=True) if title not in titles
        ]
        if missing:
            return Fault(f"missing sections: {shown(', '.join(missing), 300)}")
        places = [titles.index(title) for title in wanted]
        return (
            Fault("the sections are in another order") if self.in_order and places != sorted(places) else None
        )


class MarkdownTable(BaseRule):
    """There is a Markdown table outside code, and every row of every table has as many cells as its header."""

    rule: Literal["markdown_table"] = "markdown_table"
    columns: list[Title] | None = Field(None, min_length=1, max_length=100)
    """Header cells of the first table, in order; any if not given."""
    minimum_rows: int = Field(1, ge=0, le=100_000)
    """The least rows under each header."""

    def check(self, text: str, clock: Clock) -> Fault | None:
        lines = list(prose_lines(text, clock))
        tables = [
            place
            for place in range(1, len(lines))
            if "-" in lines[place][1] and self._begins(lines, place, clock)
        ]
        if not tables:
            return Fault("there is no Markdown table")
        header = _cells(lines[tables[0] - 1][1])
        if self.columns is not None and header != [column.strip() for column in self.columns]:
            return Fault(
                f"the table has the columns {shown(', '.join(header), 200)}", lines[tables[0] - 1][0]
            )
        faults = (self._rows(lines, place, clock) for place in tables)
        return next((fault for fault in faults if fault), None)

    def _begins(self, lines: list[tuple[int, str]], place: int, clock: Clock) -> bool:
        clock.check()
        above, here = lines[place - 1][1], lines[place][1]
        delimited = "|" in above and set(here) <= set(" \t\r|:-") and _DELIMITER_ROW.match(here)
        return bool(delimited) and len(_cells(above)) == len(_cells(here))

    def _rows(self, lines: list[tuple[int, str]], place: int, clock: Clock) -> Fault | None:
        width, rows = len(_cells(lines[place][1])), 0
        for at, line in clock.watch(lines[place + 1 :]):
            if "|" not in line:
                break
            if len(_cells(line)) != width:
                return Fault(f"the row has {len(_cells(line))} cells, its header {width}", at)
            rows += 1
        if rows < self.minimum_rows:
            return Fault(f"the table has {rows} rows, fewer than {self.minimum_rows}", lines[place - 1][0])
        return None


class NoPlaceholders(BaseRule):
    """Nothing was left to fill in: `{{name}}`, `${name}`, `[your name]`, `<укажите дату>`, `TODO`, lorem ipsum."""

    rule: Literal["no_placeholders"] = "no_placeholders"

    def check(self, text: str, clock: Clock) -> Fault | None:
        found = first_match(_PLACEHOLDER, text, clock)
        return Fault(f"{shown(found[0])} was left to fill in", found.start()) if found else None


def _headings(text: str, clock: Clock) -> list[tuple[int, str]]:
    found = (_HEADING.match(line) for _, line in prose_lines(text, clock) if "#" in line)
    return [(len(heading[1]), heading[2]) for heading in found if heading]


def _cells(row: str) -> list[str]:
    """The cells of a table's row; `\\|` does not part cells."""
    bare = _ESCAPED.sub("xx", row.strip())
    edges = [0, *(place + 1 for place, sign in enumerate(bare) if sign == "|"), len(bare) + 1]
    cells = [row.strip()[start : end - 1].strip() for start, end in pairwise(edges)]
    return cells[bare.startswith("|") : len(cells) - (bare.endswith("|") and len(cells) > 1)]
