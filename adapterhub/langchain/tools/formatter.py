"""The tool that wraps and aligns text."""

from __future__ import annotations

from typing import Self

from langchain_core.tools import tool
from pydantic import Field, model_validator

from adapterhub.agent_tools.text_formatting.wrap import Align, Layout, format_text
from adapterhub.langchain.tools.arguments import Arguments

MAX_CHARACTERS = 100_000


class FormatArguments(Arguments):
    """What to format, and how."""

    text: str = Field(max_length=MAX_CHARACTERS)
    """The text: plain or Markdown, in any language."""
    width: int = Field(80, ge=10, le=500)
    """Most columns of a line."""
    indent: int = Field(0, ge=0, le=100)
    """Blanks before every line; less than the width."""
    first_line_indent: int | None = Field(None, ge=0, le=100)
    """Blanks before the first line of each paragraph; the indent if not given."""
    align: Align = "left"
    """Where the lines of a paragraph go; justify fills them with blanks. Lists stay on the left."""
    preserve_paragraphs: bool = True
    """Keep paragraphs apart; false makes one of those that follow each other."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        self.layout()
        return self

    def layout(self) -> Layout:
        """The arguments without the text."""
        return Layout(**self.model_dump(exclude={"text"}))


@tool(args_schema=FormatArguments)
def text_formatter(text: str, **layout: object) -> str:
    """Wrap text to a width in columns and align it. Keeps paragraphs, lists, tables and code; loses no character."""
    return format_text(text, FormatArguments.model_validate({"text": text, **layout}).layout())
