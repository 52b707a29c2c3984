"""The tool that wraps and aligns text."""

from __future__ import annotations

from typing import Self

from langchain_core.tools import tool
from pydantic import Field, model_validator

from adapterhub.agent_tools.text_formatting import Align, TextLayout, format_text
from adapterhub.errors import ToolError
from adapterhub.langchain.tools.args_schema import Arguments

MAX_CHARACTERS = 100_000


class FormatArguments(Arguments):
    """The text and its layout."""

    text: str = Field(max_length=MAX_CHARACTERS)
    """The text: plain or Markdown, in any language."""
    width: int = Field(80, ge=10, le=500)
    """Maximum columns of a line."""
    indent: int = Field(0, ge=0, le=100)
    """Spaces before every line; less than the width."""
    first_line_indent: int | None = Field(None, ge=0, le=100)
    """Spaces before the first line of each paragraph; the indent if not given."""
    align: Align = "left"
    """Alignment of paragraphs; justify fills lines with spaces. Lists stay on the left."""
    preserve_paragraphs: bool = True
    """Keep paragraphs and short lines separate; false joins consecutive ones."""

    @model_validator(mode="after")
    def _check_layout(self) -> Self:
        try:
            self.layout()
        except ToolError as error:
            raise ValueError(error.message) from error
        return self

    def layout(self) -> TextLayout:
        """The layout that the arguments describe."""
        return TextLayout(**self.model_dump(exclude={"text"}))


@tool(args_schema=FormatArguments)
def text_formatter(text: str, **layout: object) -> str:
    """Wrap text to a width in columns and align it. Keeps paragraphs, lists, tables and code; loses no character."""
    return format_text(text, FormatArguments.model_validate({"text": text, **layout}).layout())
