"""Tool calls of chat templates: their format, the grammar that makes them valid, and their parser."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.tool_calling.call_format import HERMES, ToolCallFormat
    from adapterhub.tool_calling.call_format_detection import ToolCallFormats, detect_format
    from adapterhub.tool_calling.call_parser import (
        ToolCall,
        ToolCallChunk,
        ToolCallParser,
        parse_tool_calls,
    )
    from adapterhub.tool_calling.chat_request import ChatRequest, needs_call_format, response_schema
    from adapterhub.tool_calling.tool_choice import ToolChoice, argument_violations

_EXPORTS = {
    "HERMES": "adapterhub.tool_calling.call_format",
    "ChatRequest": "adapterhub.tool_calling.chat_request",
    "ToolCall": "adapterhub.tool_calling.call_parser",
    "ToolCallChunk": "adapterhub.tool_calling.call_parser",
    "ToolCallFormat": "adapterhub.tool_calling.call_format",
    "ToolCallFormats": "adapterhub.tool_calling.call_format_detection",
    "ToolCallParser": "adapterhub.tool_calling.call_parser",
    "ToolChoice": "adapterhub.tool_calling.tool_choice",
    "argument_violations": "adapterhub.tool_calling.tool_choice",
    "detect_format": "adapterhub.tool_calling.call_format_detection",
    "needs_call_format": "adapterhub.tool_calling.chat_request",
    "parse_tool_calls": "adapterhub.tool_calling.call_parser",
    "response_schema": "adapterhub.tool_calling.chat_request",
}

__all__ = [
    "HERMES",
    "ChatRequest",
    "ToolCall",
    "ToolCallChunk",
    "ToolCallFormat",
    "ToolCallFormats",
    "ToolCallParser",
    "ToolChoice",
    "argument_violations",
    "detect_format",
    "needs_call_format",
    "parse_tool_calls",
    "response_schema",
]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
