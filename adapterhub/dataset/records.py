"""A conversation of a dataset, and reading a JSON Lines file of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapterhub.errors import DatasetError, describe_validation

_ERRORS_SHOWN = 5


class Message(BaseModel):
    """One message of a conversation; further keys go to the chat template as they are."""

    model_config = ConfigDict(extra="allow", frozen=True)

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        if self.role == "assistant" and not self.content and not self.tool_calls:
            raise ValueError("an assistant message needs content or tool_calls")
        if self.role != "assistant" and self.content is None:
            raise ValueError("content is missing")
        return self

    @property
    def said(self) -> str:
        """Its text, and the calls that it makes."""
        if not self.tool_calls:
            return self.content or ""
        return (
            f"{self.content or ''} {json.dumps(self.tool_calls, sort_keys=True, ensure_ascii=False)}".lstrip()
        )


class Record(BaseModel):
    """One conversation of a dataset; keys other than these are ignored.

    Attributes:
        messages: The conversation, with at least one assistant message.
        tools: JSON schemas of the tools that the conversation may call.
        line: Its line number in the file, from 1.
    """

    model_config = ConfigDict(frozen=True)

    messages: list[Message] = Field(min_length=1)
    tools: list[dict[str, Any]] | None = None
    line: int

    @model_validator(mode="after")
    def _has_answer(self) -> Self:
        if all(message.role != "assistant" for message in self.messages):
            raise ValueError("no assistant message to learn from")
        return self

    @property
    def conversation(self) -> str:
        """What users and the assistant say; system prompts and results of tools are left out."""
        return "\n".join(one.said for one in self.messages if one.role in ("user", "assistant"))

    @property
    def answers(self) -> str:
        """What the assistant says."""
        return "\n".join(one.said for one in self.messages if one.role == "assistant")


@dataclass(frozen=True)
class Sample:
    """A record on its way through the stages of dataset composition.

    Attributes:
        record: The conversation; `line` counts the rows of its source, from 1.
        source: The label of its source, as on the data card.
        rating: Its rating, where its source has one.
        tokens: Number of its tokens, once they were counted.
        has_shared_prompt: Whether its user's message is one that its source uses in turn, and says nothing about it.
    """

    record: Record
    source: str
    rating: float | None = None
    tokens: int | None = None
    has_shared_prompt: bool = False

    @property
    def compared(self) -> Record:
        """The record as duplicates of it are searched for: without a prompt that others share."""
        if not self.has_shared_prompt:
            return self.record
        messages = [message for message in self.record.messages if message.role != "user"]
        return self.record.model_copy(update={"messages": messages})


def read_records(path: Path, *, max_records: int | None = None) -> list[Record]:
    """Reads and checks a JSON Lines file of conversations.

    Args:
        path: The file, UTF-8; blank lines are skipped.
        max_records: Read at most this many.

    Raises:
        DatasetError: The file cannot be read, is empty, or has invalid lines; the message has line numbers
            and never the lines' text.
    """
    records: list[Record] = []
    problems: list[str] = []
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if len(records) == max_records or len(problems) == _ERRORS_SHOWN:
                    break
                if line.strip():
                    _parse(line, number, records, problems)
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"The dataset {str(path)!r} could not be read: {_reason(error)}.") from None
    if problems:
        raise DatasetError(
            f"The dataset {str(path)!r} has invalid lines: {'; '.join(problems)}.",
            hint='Each line is {"messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}]}.',
        )
    if not records:
        raise DatasetError(f"The dataset {str(path)!r} holds no records.")
    return records


def _parse(line: str, number: int, records: list[Record], problems: list[str]) -> None:
    try:
        content = json.loads(line)
        if not isinstance(content, dict):
            raise TypeError("not an object")
        _check_unicode(line, content)
        records.append(Record.model_validate({**content, "line": number}))
    except (ValidationError, ValueError, TypeError, RecursionError) as error:
        problems.append(f"line {number}: {_reason(error)}")


def _check_unicode(line: str, content: dict[str, Any]) -> None:
    """JSON can spell half of a surrogate pair, which no tokenizer takes."""
    if "\\ud" in line.lower():  # serialising every line would take as long as parsing it
        try:
            json.dumps(content, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("not valid Unicode: an escape is half of a surrogate pair") from None


def _reason(error: Exception) -> str:
    match error:
        case ValidationError():
            return describe_validation(error)
        case json.JSONDecodeError():
            return f"not JSON ({error.msg})"
        case UnicodeDecodeError():
            return "not UTF-8"
        case OSError():
            return error.strerror or type(error).__name__
        case _:
            return str(error)
