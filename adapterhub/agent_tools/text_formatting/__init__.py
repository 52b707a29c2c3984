"""Formatting of plain text and Markdown: display width, blocks, wrapping, alignment."""

from adapterhub.agent_tools.text_formatting.width import display_width
from adapterhub.agent_tools.text_formatting.wrap import Align, TextLayout, format_text

__all__ = ["Align", "TextLayout", "display_width", "format_text"]
