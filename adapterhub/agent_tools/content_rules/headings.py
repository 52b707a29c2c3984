"""The headings of a Markdown text, as in CommonMark: marked with `#`, or underlined.

Only the inline markup of a title is parsed by `markdown-it-py`. Its parser of whole texts has no time limit, and takes
up to 5 s for a megabyte of short lines.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import regex

from adapterhub._deadline import Deadline
from adapterhub.agent_tools.text_formatting.fences import mark_fenced

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

_MARKED = regex.compile(r" {0,3}(#{1,6})(?:[ \t]|$)")
_UNDERLINE = regex.compile(r" {0,3}(?:(=+)|-+)[ \t]*$")
_BREAK = regex.compile(r" {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$")
_CONTAINER = regex.compile(r" {0,3}(?:>|(?:[-*+]|[0-9]{1,9}[.)])(?:[ \t]|$))")
_INTERRUPTING = regex.compile(r" {0,3}(?:>|[-*+][ \t]+\S|1[.)][ \t]+\S)")
_HTML = regex.compile(r" {0,3}<(?:(!--)|(?i:(pre|script|style|textarea))(?=[\s>]|$))")
_INDENTED = regex.compile(r"(?: {4}| {0,3}\t)")
_YAML_KEY = regex.compile(r"[\w\"'][^:]{0,100}:(?:\s|$)")
_INLINE_MARKUP = regex.compile(r"[*_`\[\]<>&\\!]")
_MAX_TITLE = 500
"""Characters of a title whose markup is parsed: the parser of inline markup has no time limit either."""


class Heading(NamedTuple):
    """A heading: its level, 1 to 6, and its title without markup."""

    level: int
    title: str


def headings(text: str, deadline: Deadline) -> Iterator[Heading]:
    """Yields the headings outside code, quotations, lists and HTML comments; front matter has none.

    Raises:
        DeadlineExceededError: The time is used up.
    """
    paragraph: list[str] = []
    in_container, html_end = False, ""
    for line, is_code in deadline.limit(mark_fenced(_lines(text))):
        if html_end:
            html_end = "" if html_end in line.lower() else html_end
        elif is_code or not line.strip():
            paragraph, in_container = [], False
        elif paragraph and (underline := _UNDERLINE.match(line)):
            yield Heading(1 if underline[1] else 2, " ".join(paragraph))
            paragraph = []
        elif marked := _MARKED.match(line):
            yield Heading(len(marked[1]), _without_closing(line[marked.end() :].strip()))
            paragraph, in_container = [], False
        elif _BREAK.match(line):
            paragraph, in_container = [], False
        elif (_INTERRUPTING if paragraph else _CONTAINER).match(line):
            paragraph, in_container = [], _opens_paragraph(line)
        elif html := _HTML.match(line):
            html_end = "-->" if html[1] else f"</{html[2].lower()}>"
            html_end = "" if html_end in line.lower() else html_end
            paragraph = []
        elif not in_container and (paragraph or not _INDENTED.match(line)):
            paragraph.append(line.strip())


def comparable(title: str) -> str:
    """A title as it is compared: without markup, in any case and in any Unicode form."""
    if _INLINE_MARKUP.search(title) and len(title) <= _MAX_TITLE:
        title = _text(_parser().parseInline(title))
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", " ".join(title.split())).casefold())


def _lines(text: str) -> list[str]:
    lines = [line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n")]
    if lines[0].rstrip() == "---" and "---" in lines[1:] and _YAML_KEY.match(lines[1]):  # front matter
        return lines[lines.index("---", 1) + 1 :]
    return lines


def _opens_paragraph(line: str) -> bool:
    """Whether a line of a quotation or list item begins a paragraph, which the next line continues (lazily)."""
    marker = _CONTAINER.match(line)
    content = line[marker.end() :].strip() if marker else line
    return bool(content) and not _MARKED.match(content) and not _BREAK.match(content)


def _without_closing(title: str) -> str:
    """A title without its closing `#`, which a space sets apart: the title of `# C#` is `C#`."""
    bare = title.rstrip("#")
    return bare.rstrip() if not bare or bare[-1].isspace() else title


def _text(tokens: list[Any]) -> str:
    return "".join(
        _text(token.children) if token.children else " " if token.type.endswith("break") else token.content
        for token in tokens
    )


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt  # only for titles with markup

    return MarkdownIt("commonmark")
