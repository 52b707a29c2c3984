"""The typed events of a streamed response, numbered in sequence.

An answer is at most one message and then its calls. Each item is added, grows by deltas, and is done:

    response.created, response.in_progress
    output_item.added, content_part.added, output_text.delta*, output_text.done, content_part.done, output_item.done
    output_item.added, function_call_arguments.delta*, function_call_arguments.done, output_item.done
    response.completed | response.incomplete | response.failed
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import uuid4

from adapterhub.server.protocol.response_answers import (
    ItemStatus,
    OutputFunctionCall,
    OutputItem,
    OutputMessage,
    OutputText,
    ResponseObject,
)
from adapterhub.tool_calling import ToolCallChunk

Event = dict[str, Any]
Logprob = dict[str, Any]


def new_message() -> OutputMessage:
    """A message without text yet."""
    return OutputMessage(id=f"msg_{uuid4().hex}")


def new_call(name: str, call_id: str) -> OutputFunctionCall:
    """A call without arguments yet."""
    return OutputFunctionCall(id=f"fc_{uuid4().hex}", call_id=call_id, name=name)


@dataclass
class ResponseEvents:
    """Builds a response from the parts of an answer, and tells each change of it as events.

    Attributes:
        response: The response so far.
    """

    response: ResponseObject
    _numbers: Iterator[int] = field(default_factory=count, repr=False)
    _open: OutputItem | None = field(default=None, repr=False)

    def start(self) -> Iterator[Event]:
        """The request is accepted."""
        yield self._of_response("response.created")
        yield self._of_response("response.in_progress")

    def add(self, part: str | ToolCallChunk, logprobs: Sequence[Logprob] = ()) -> Iterator[Event]:
        """A text, or a part of a call, follows.

        Args:
            part: From `ToolCallParser`, or text.
            logprobs: Those of a text's tokens, if requested.
        """
        if isinstance(part, str):
            yield from self._add_text(part, list(logprobs))
            return
        if part["name"] is not None:
            yield from self._close()
            yield from self._begin(new_call(part["name"], part["id"] or ""))
        if part["args"] and isinstance(self._open, OutputFunctionCall):
            self._open.arguments += part["args"]
            yield self._of_item("response.function_call_arguments.delta", delta=part["args"])

    def end(self, response: ResponseObject, *, is_cut: bool = False) -> Iterator[Event]:
        """The answer has ended, or failed.

        Args:
            response: The whole response, but for its output, which is known here.
            is_cut: Whether its last call is not whole.
        """
        if response.status != "failed":
            if not self.response.output:
                yield from self._begin(new_message())
            is_whole = response.status == "completed" and not is_cut
            yield from self._close("completed" if is_whole else "incomplete")
        self.response = response.model_copy(update={"output": self.response.output})
        yield self._of_response(f"response.{response.status}")

    def _add_text(self, text: str, logprobs: list[Logprob]) -> Iterator[Event]:
        if not isinstance(self._open, OutputMessage):
            yield from self._close()
            yield from self._begin(new_message())
        if isinstance(self._open, OutputMessage):
            content = self._open.content[0]
            content.text += text
            content.logprobs += logprobs
            yield self._of_item("response.output_text.delta", content_index=0, delta=text, logprobs=logprobs)

    def _begin(self, item: OutputItem) -> Iterator[Event]:
        self._open = item
        self.response.output.append(item)
        yield self._event("response.output_item.added", item=item.model_dump(), output_index=self._index)
        if isinstance(item, OutputMessage):
            item.content.append(OutputText())
            yield self._of_part(item, "response.content_part.added")

    def _close(self, status: ItemStatus = "completed") -> Iterator[Event]:
        item, index = self._open, self._index
        if isinstance(item, OutputMessage):
            part = item.content[0]
            yield self._of_item(
                "response.output_text.done", content_index=0, text=part.text, logprobs=part.logprobs
            )
            yield self._of_part(item, "response.content_part.done")
        if isinstance(item, OutputFunctionCall):
            yield self._of_item(
                "response.function_call_arguments.done", name=item.name, arguments=item.arguments
            )
        if item:
            item.status = status
            yield self._event("response.output_item.done", item=item.model_dump(), output_index=index)
        self._open = None

    @property
    def _index(self) -> int:
        return len(self.response.output) - 1

    def _of_response(self, kind: str) -> Event:
        return self._event(kind, response=self.response.model_dump())

    def _of_item(self, kind: str, **fields: Any) -> Event:
        item_id = self._open.id if self._open else ""
        return self._event(kind, item_id=item_id, output_index=self._index, **fields)

    def _of_part(self, message: OutputMessage, kind: str) -> Event:
        return self._of_item(kind, content_index=0, part=message.content[0].model_dump())

    def _event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "sequence_number": next(self._numbers), **fields}
