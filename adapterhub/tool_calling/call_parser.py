"""Streaming parser of tool calls."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict
from uuid import uuid4

from adapterhub.errors import GenerationError
from adapterhub.tool_calling.call_format import ID_LENGTH, ToolCallFormat

_QUOTED_NAME = re.compile(r'(?:[^"\\]|\\.)*(?=")')
_LETTERS = string.ascii_letters + string.digits


class ToolCall(TypedDict):
    """A whole call.

    Attributes:
        name: The function.
        args: Its arguments.
        id: The call's id, which its result names.
    """

    name: str
    args: dict[str, Any]
    id: str


class ToolCallChunk(TypedDict):
    """A part of a call; those of one index, joined in order, are the call.

    Attributes:
        name: The function, in the first part; then None.
        args: A part of the arguments' JSON.
        id: The call's id, in the first part; then None.
        index: Which call of the answer it is, from 0.
    """

    name: str | None
    args: str
    id: str | None
    index: int


@dataclass
class _ObjectEnd:
    """Finds the end of a JSON object in a stream."""

    _depth: int = 0
    _quoted: bool = False
    _escaped: bool = False

    def find(self, delta: str) -> int | None:
        """The index after its end; None if it does not end in the delta."""
        for index, char in enumerate(delta, start=1):
            if self._quoted:
                self._quoted = self._escaped or char != '"'
                self._escaped = char == "\\" and not self._escaped
            elif char == '"':
                self._quoted = True
            elif char in "{}":
                self._depth += 1 if char == "{" else -1
                if not self._depth:
                    return index
        return None


@dataclass
class ToolCallParser:
    """Separates text and tool calls in a streamed answer, which follows the grammar of `ToolChoice`.

    Attributes:
        call_format: The format of the calls.
        count: The number of calls so far.
    """

    call_format: ToolCallFormat
    count: int = 0
    _buffer: str = ""
    _state: str = field(default="text", repr=False)
    _field_index: int = 0
    _has_name: bool = False
    _early_arguments: str = ""
    _object: _ObjectEnd = field(default_factory=_ObjectEnd, repr=False)

    def push(self, delta: str) -> list[str | ToolCallChunk]:
        """Adds a delta of the answer; returns the text and the chunks of calls that are certain now."""
        self._buffer += delta
        output: list[str | ToolCallChunk] = []
        while (step := getattr(self, f"_{self._state}")()) is not None:
            output += step
        return [part for part in output if part]

    def flush(self) -> list[str]:
        """Ends the answer and returns the rest of its text.

        Raises:
            GenerationError: The answer ended within a call.
        """
        rest, self._buffer = self._buffer, ""
        if self._state in ("text", "plain"):
            return [rest] if rest else []
        if not (self._state == "end" or (self._state == "after" and rest == self.call_format.suffix)):
            raise GenerationError(
                "The answer ended within a tool call.", hint="Raise max_tokens, or leave stop out."
            )
        return []

    # One method for each state: it consumes from the buffer and returns its output; None if it needs more input.

    def _text(self) -> list[str] | None:
        call_format = self.call_format
        before, marker, after = self._buffer.partition(call_format.start_marker)
        if marker and not (call_format.only_at_start and before):
            self._buffer, self._state = marker + after, "prefix"
            return [before.removesuffix(call_format.content_separator)]
        if call_format.only_at_start and not call_format.start_marker.startswith(self._buffer):
            self._state = "plain"
            return []
        return self._release(
            call_format.content_separator + call_format.start_marker, call_format.start_marker
        )

    def _plain(self) -> list[str] | None:
        return self._release()

    def _prefix(self) -> list[str] | None:
        return self._begin_call() if self._consume(self.call_format.prefix) else None

    def _name(self) -> list[ToolCallChunk] | None:
        if self.call_format.quotes_name:
            match = _QUOTED_NAME.match(self._buffer)
            name = match[0] if match else None
        else:
            before, separator, _ = self._buffer.partition(self.call_format.separators[self._field_index])
            name = before if separator else None
        if name is None:
            return None
        self._buffer, self._has_name = self._buffer[len(name) :], True
        self._end_field()
        chunk = self._chunk(
            name=json.loads(f'"{name}"') if self.call_format.quotes_name else name, id=self._new_id()
        )
        return [chunk, self._chunk(args=self._early_arguments)] if self._early_arguments else [chunk]

    def _id(self) -> list[str] | None:
        if len(self._buffer) < ID_LENGTH:
            return None
        self._buffer = self._buffer[ID_LENGTH:]
        return self._end_field()

    def _arguments(self) -> list[ToolCallChunk] | None:
        if not self._buffer:
            return None
        end = self._object.find(self._buffer)
        arguments, self._buffer = self._buffer[:end], self._buffer[end:] if end else ""
        if end:
            self._end_field()
        if self._has_name:
            return [self._chunk(args=arguments)]
        self._early_arguments += arguments
        return []

    def _separator(self) -> list[str] | None:
        if not self._consume(self.call_format.separators[self._field_index]):
            return None
        self._field_index += 1
        self._state = self.call_format.fields[self._field_index]
        return []

    def _after(self) -> list[str] | None:
        separator, suffix = self.call_format.call_separator, self.call_format.suffix
        if separator is not None and self._buffer.startswith(separator):
            return self._begin_call() if self._consume(separator) else None
        if separator is not None and separator.startswith(self._buffer):
            return None
        if not self._consume(suffix):
            return None
        self._state = "end"
        return []

    def _end(self) -> None:
        return None

    def _begin_call(self) -> list[str]:
        self.count += 1
        self._field_index, self._has_name, self._early_arguments, self._object = 0, False, "", _ObjectEnd()
        self._state = self.call_format.fields[0]
        return []

    def _end_field(self) -> list[str]:
        self._state = "separator" if self._field_index < len(self.call_format.separators) else "after"
        return []

    def _consume(self, text: str) -> bool:
        """Consumes a fixed text; False if the buffer holds only a part of it so far.

        Raises:
            GenerationError: The buffer holds something else.
        """
        if self._buffer.startswith(text):
            self._buffer = self._buffer[len(text) :]
            return True
        if not text.startswith(self._buffer):
            raise GenerationError("A tool call does not follow its format.")
        return False

    def _release(self, *markers: str) -> list[str] | None:
        """Releases the buffer, except for an end that may be the start of a marker."""
        held_back = max((_overlap(self._buffer, marker) for marker in markers), default=0)
        released = self._buffer[: len(self._buffer) - held_back]
        self._buffer = self._buffer[len(released) :]
        return [released] if released else None

    def _new_id(self) -> str:
        # The answer's own id is ignored: it comes after the arguments, and a model may repeat one.
        if "id" in self.call_format.fields:
            return "".join(secrets.choice(_LETTERS) for _ in range(ID_LENGTH))
        return f"call_{uuid4().hex[:24]}"

    def _chunk(self, *, args: str = "", name: str | None = None, id: str | None = None) -> ToolCallChunk:  # noqa: A002
        return ToolCallChunk(name=name, args=args, id=id, index=self.count - 1)


def _overlap(text: str, marker: str) -> int:
    """The length of the longest suffix of a text that is a prefix of a marker."""
    return next((size for size in range(len(marker) - 1, 0, -1) if text.endswith(marker[:size])), 0)


def parse_tool_calls(answer: str, call_format: ToolCallFormat) -> tuple[str, list[ToolCall]]:
    """Parses a whole answer into its text and its calls.

    Args:
        answer: The answer.
        call_format: The format of its calls.

    Raises:
        GenerationError: A call is incomplete; with the grammar of `ToolChoice` none is.
    """
    parser = ToolCallParser(call_format)
    parts = [*parser.push(answer), *parser.flush()]
    text = "".join(part for part in parts if isinstance(part, str))
    chunks = [part for part in parts if not isinstance(part, str)]
    return text, [_merge(chunks, index) for index in range(parser.count)]


def _merge(chunks: Sequence[ToolCallChunk], index: int) -> ToolCall:
    own = [chunk for chunk in chunks if chunk["index"] == index]
    arguments = "".join(chunk["args"] for chunk in own)
    return ToolCall(name=own[0]["name"] or "", args=json.loads(arguments), id=own[0]["id"] or "")
