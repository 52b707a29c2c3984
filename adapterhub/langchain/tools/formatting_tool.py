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
    """Plain text or Markdown."""
    width: int = Field(80, ge=10, le=500)
    """Columns of a line."""
    indent: int = Field(0, ge=0, le=100)
    """Spaces before every line."""
    first_line_indent: int | None = Field(None, ge=0, le=100)
    """Of each paragraph, if it differs from `indent`."""
    align: Align = "left"
    """Of paragraphs."""
    preserve_paragraphs: bool = True
    """False joins paragraphs."""

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
    """Wrap and align text; paragraphs, lists, tables and code stay."""
    return format_text(text, FormatArguments.model_validate({"text": text, **layout}).layout())
