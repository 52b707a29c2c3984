"""Reads a Modelfile as Ollama does: https://github.com/ollama/ollama/blob/main/parser/parser.go."""

from __future__ import annotations

import re


def parse_modelfile(text: str) -> list[tuple[str, str]]:
    """The instructions, in small letters, and their values; of parameters the names."""
    found, position = [], 0
    while match := re.compile(r"(?:\s+|#[^\n]*)*([A-Za-z]+)[ \t]").match(text, position):
        name, position = match[1].lower(), match.end()
        if name == "parameter":
            parameter = re.compile(r"[ \t]*(\w+)[ \t]").match(text, position)
            assert parameter
            name, position = parameter[1], parameter.end()
        value, position = _value(text, position)
        found.append((name, value))
    assert not text[position:].strip()
    return found


def _value(text: str, start: int) -> tuple[str, int]:
    """A value ends at a line's end, or, if it begins with quotes, at the first such quotes before a space."""
    for end in range(start, len(text) + 1):
        if end < len(text) and text[end] not in " \t\r\n":
            continue
        read = "".join(sign for sign in text[start:end] if sign.isprintable() or sign in " \t\r\n").strip()
        quote = '"""' if read.startswith('"""') else '"' if read.startswith('"') else ""
        if quote and len(read) >= 2 * len(quote) and read.endswith(quote):
            return read[len(quote) : -len(quote)], end
        if not quote and (end == len(text) or text[end] in "\r\n"):
            return read, end
    raise AssertionError("a value has no end")
