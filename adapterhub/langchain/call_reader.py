"""Reading an answer's tool calls while they arrive."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import uuid4

from langchain_core.messages import ToolCall
from langchain_core.messages.tool import ToolCallChunk, tool_call_chunk

from adapterhub.errors import GenerationError
from adapterhub.langchain.call_format import ID_SIZE, CallFormat

_QUOTED_NAME = re.compile(r'(?:[^"\\]|\\.)*(?=")')
_LETTERS = string.ascii_letters + string.digits


@dataclass
class _ObjectEnd:
    """Finds where a JSON object ends that comes in pieces."""

    _depth: int = 0
    _quoted: bool = False
    _escaped: bool = False

    def find(self, piece: str) -> int | None:
        """The place after its end, or None if it goes on after the piece."""
        for place, char in enumerate(piece, start=1):
            if self._quoted:
                self._quoted = self._escaped or char != '"'
                self._escaped = char == "\\" and not self._escaped
            elif char == '"':
                self._quoted = True
            elif char in "{}":
                self._depth += 1 if char == "{" else -1
                if not self._depth:
                    return place
        return None


@dataclass
class CallReader:
    """Tells calls from text while an answer arrives; its calls are in the form that `ToolChoice.grammar` gives them.

    Attributes:
        form: How calls are written.
        count: How many calls have begun.
    """

    form: CallFormat
    count: int = 0
    _held: str = ""
    _state: str = field(default="text", repr=False)
    _part: int = 0
    _named: bool = False
    _early: str = ""
    _object: _ObjectEnd = field(default_factory=_ObjectEnd, repr=False)

    def push(self, piece: str) -> list[str | ToolCallChunk]:
        """Takes a piece of the answer and returns what is certain now: text, and pieces of calls."""
        self._held += piece
        found: list[str | ToolCallChunk] = []
        while (step := getattr(self, f"_{self._state}")()) is not None:
            found += step
        return [part for part in found if part]

    def flush(self) -> list[str]:
        """The text that was held back, at the answer's end.

        Raises:
            GenerationError: The answer ended within a call.
        """
        rest, self._held = self._held, ""
        if self._state in ("text", "plain"):
            return [rest] if rest else []
        if not (self._state == "end" or (self._state == "after" and rest == self.form.tail)):
            raise GenerationError("The answer ended within a tool call.", hint="Raise max_tokens.")
        return []

    # Each takes what it can from what is held, and returns what that gave; None if it has to wait for more.

    def _text(self) -> list[str] | None:
        form = self.form
        before, mark, after = self._held.partition(form.mark)
        if mark and not (form.alone and before):
            self._held, self._state = mark + after, "head"
            return [before.removesuffix(form.lead)]
        if form.alone and not form.mark.startswith(self._held):
            self._state = "plain"
            return []
        return self._release(form.lead + form.mark, form.mark)

    def _plain(self) -> list[str] | None:
        return self._release()

    def _head(self) -> list[str] | None:
        return self._call() if self._takes(self.form.head) else None

    def _name(self) -> list[ToolCallChunk] | None:
        if self.form.quoted:
            found = _QUOTED_NAME.match(self._held)
            name = found[0] if found else None
        else:
            before, gap, _ = self._held.partition(self.form.gaps[self._part])
            name = before if gap else None
        if name is None:
            return None
        self._held, self._named = self._held[len(name) :], True
        self._next()
        chunk = self._chunk(name=json.loads(f'"{name}"') if self.form.quoted else name, id=self._new_id())
        return [chunk, self._chunk(args=self._early)] if self._early else [chunk]

    def _id(self) -> list[str] | None:
        if len(self._held) < ID_SIZE:
            return None
        self._held = self._held[ID_SIZE:]
        return self._next()

    def _arguments(self) -> list[ToolCallChunk] | None:
        if not self._held:
            return None
        end = self._object.find(self._held)
        arguments, self._held = self._held[:end], self._held[end:] if end else ""
        if end:
            self._next()
        if self._named:
            return [self._chunk(args=arguments)]
        self._early += arguments
        return []

    def _gap(self) -> list[str] | None:
        if not self._takes(self.form.gaps[self._part]):
            return None
        self._part += 1
        self._state = self.form.parts[self._part]
        return []

    def _after(self) -> list[str] | None:
        join, tail = self.form.join, self.form.tail
        if join is not None and self._held.startswith(join):
            return self._call() if self._takes(join) else None
        if join is not None and join.startswith(self._held):
            return None
        if not self._takes(tail):
            return None
        self._state = "end"
        return []

    def _end(self) -> None:
        return None

    def _call(self) -> list[str]:
        """Begins one."""
        self.count += 1
        self._part, self._named, self._early, self._object = 0, False, "", _ObjectEnd()
        self._state = self.form.parts[0]
        return []

    def _next(self) -> list[str]:
        self._state = "gap" if self._part < len(self.form.gaps) else "after"
        return []

    def _takes(self, text: str) -> bool:
        """Takes a text off what is held; False if it may still come.

        Raises:
            GenerationError: Something else is there.
        """
        if self._held.startswith(text):
            self._held = self._held[len(text) :]
            return True
        if not text.startswith(self._held):
            raise GenerationError("A tool call is not in its form.")
        return False

    def _release(self, *marks: str) -> list[str] | None:
        """What is held, but for an end that may begin a mark."""
        keep = max((_overlap(self._held, mark) for mark in marks), default=0)
        released = self._held[: len(self._held) - keep]
        self._held = self._held[len(released) :]
        return [released] if released else None

    def _new_id(self) -> str:
        # What the answer itself has for an id is passed over: it comes late, and a base may write one twice.
        if "id" in self.form.parts:
            return "".join(secrets.choice(_LETTERS) for _ in range(ID_SIZE))
        return f"call_{uuid4().hex[:24]}"

    def _chunk(self, *, args: str = "", name: str | None = None, id: str | None = None) -> ToolCallChunk:  # noqa: A002
        return tool_call_chunk(name=name, args=args, id=id, index=self.count - 1)


def _overlap(text: str, mark: str) -> int:
    """The length of the longest end of a text that begins a mark."""
    return next((size for size in range(len(mark) - 1, 0, -1) if text.endswith(mark[:size])), 0)


def read_calls(answer: str, form: CallFormat) -> tuple[str, list[ToolCall]]:
    """A whole answer's text and its calls.

    Args:
        answer: The answer.
        form: How its calls are written.

    Raises:
        GenerationError: A call is not whole; answers in the grammar's form always are.
    """
    reader = CallReader(form)
    parts = [*reader.push(answer), *reader.flush()]
    text = "".join(part for part in parts if isinstance(part, str))
    chunks = [part for part in parts if not isinstance(part, str)]
    return text, [_joined(chunks, number) for number in range(reader.count)]


def _joined(chunks: Sequence[ToolCallChunk], number: int) -> ToolCall:
    mine = [chunk for chunk in chunks if chunk["index"] == number]
    arguments = "".join(chunk["args"] or "" for chunk in mine)
    return ToolCall(
        name=mine[0]["name"] or "", args=json.loads(arguments), id=mine[0]["id"], type="tool_call"
    )
