"""What an adapter is compared on: held-out records, whose answers are scored, and prompts, which are answered."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapterhub._files import sha256_file
from adapterhub.dataset.records import Record, read_records
from adapterhub.errors import AdapterHubError, DatasetError, InvalidRequestError, describe_validation
from adapterhub.requests.prompts import conversation

_MAX_PROBLEMS = 5


@dataclass(frozen=True)
class EvaluationPrompt:
    """A prompt that every contender answers.

    Attributes:
        messages: The conversation, whose last message is not the answer.
        reference: The answer that is expected; None if any is fine.
        tools: JSON schemas of the tools that are shown.
    """

    messages: tuple[Mapping[str, Any], ...]
    reference: str | None = None
    tools: tuple[Mapping[str, Any], ...] | None = None

    @property
    def text(self) -> str:
        """The last message, which stands for the prompt in reports."""
        return str(self.messages[-1].get("content") or "")


@dataclass(frozen=True)
class EvaluationFile:
    """A file that was read.

    Attributes:
        name: Its name without the folder.
        sha256: The digest of its content.
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class EvaluationData:
    """What an adapter is compared on.

    Attributes:
        records: Held-out records; the perplexity is that of their answers.
        prompts: The prompts to answer.
        files: Where both come from: the data first, then the prompts.
    """

    records: tuple[Record, ...]
    prompts: tuple[EvaluationPrompt, ...]
    files: tuple[EvaluationFile, ...]


def read_data(
    data: str | Path | None = None,
    prompts: str | Path | None = None,
    *,
    max_records: int | None = None,
    max_prompts: int = 50,
) -> EvaluationData:
    """Reads held-out data, prompts, or both.

    Args:
        data: JSON Lines of conversations, as for fine-tuning. The prompts are these without their last answer, which
            is the reference, unless `prompts` is given.
        prompts: A text file with a prompt in each line; or, with the suffix `.jsonl`, JSON Lines of
            `{"prompt": ..., "reference": ...}` or `{"messages": [...], "tools": [...], "reference": ...}`, references
            and tools only where there are any.
        max_records: Read at most this many records of the data.
        max_prompts: Answer at most this many prompts.

    Raises:
        InvalidRequestError: Neither file is given.
        DatasetError: A file cannot be read, holds nothing, or has lines that are not valid.
    """
    if data is None and prompts is None:
        raise InvalidRequestError(
            "There is nothing to compare on.", hint="Give held-out data, prompts, or both."
        )
    records = read_records(Path(data), max_records=max_records) if data is not None else []
    asked = _prompts(Path(prompts)) if prompts is not None else _prompts_of(records)
    paths = [Path(path) for path in (data, prompts) if path is not None]
    files = tuple(EvaluationFile(path.name, sha256_file(path)) for path in paths)
    return EvaluationData(tuple(records), tuple(asked[:max_prompts]), files)


def data_of_records(
    records: Sequence[Record], file: EvaluationFile, *, max_prompts: int = 50
) -> EvaluationData:
    """Held-out records that were read already; the prompts are theirs.

    Args:
        records: The records.
        file: Where they come from.
        max_prompts: As for `read_data`.
    """
    return EvaluationData(tuple(records), tuple(_prompts_of(records)[:max_prompts]), (file,))


def _prompts_of(records: Sequence[Record]) -> list[EvaluationPrompt]:
    return [prompt for record in records if (prompt := _without_answer(record))]


def _without_answer(record: Record) -> EvaluationPrompt | None:
    """The conversation up to its last answer; None if nothing comes before it."""
    messages = [message.model_dump(exclude_none=True) for message in record.messages]
    last = max(i for i, message in enumerate(messages) if message["role"] == "assistant")
    if all(message["role"] == "system" for message in messages[:last]):
        return None
    tools = tuple(record.tools) if record.tools else None
    return EvaluationPrompt(tuple(messages[:last]), messages[last].get("content") or None, tools)


class _Line(BaseModel):
    """One line of a file of prompts."""

    model_config = ConfigDict(extra="forbid")

    prompt: str | None = Field(None, min_length=1)
    messages: list[dict[str, Any]] | None = Field(None, min_length=1)
    reference: str | None = None
    tools: list[dict[str, Any]] | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> _Line:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give prompt or messages")
        return self

    def to_prompt(self) -> EvaluationPrompt:
        messages = conversation(self.prompt if self.prompt is not None else self.messages or [])
        return EvaluationPrompt(tuple(messages), self.reference, tuple(self.tools) if self.tools else None)


def _prompts(path: Path) -> list[EvaluationPrompt]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise DatasetError(f"The prompts {str(path)!r} could not be read: {reason}.") from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if path.suffix.lower() != ".jsonl":
        return _some(path, [_user_prompt(line.strip()) for _, line in lines])
    found, problems = [], []
    for number, line in lines:
        try:
            found.append(_Line.model_validate(json.loads(line)).to_prompt())
        except (ValueError, RecursionError, AdapterHubError) as error:
            problems.append(f"line {number}: {_reason(error)}")
    if problems:
        raise DatasetError(
            f"The prompts {str(path)!r} have invalid lines: {'; '.join(problems[:_MAX_PROBLEMS])}.",
            hint='Each line is {"prompt": ..., "reference": ...} or {"messages": [...], "reference": ...}.',
        )
    return _some(path, found)


def _user_prompt(text: str) -> EvaluationPrompt:
    return EvaluationPrompt(({"role": "user", "content": text},))


def _some(path: Path, prompts: list[EvaluationPrompt]) -> list[EvaluationPrompt]:
    if not prompts:
        raise DatasetError(f"The prompts {str(path)!r} hold no prompt.")
    return prompts


def _reason(error: Exception) -> str:
    """What is wrong with a line, without its text."""
    match error:
        case ValidationError():
            return describe_validation(error)
        case json.JSONDecodeError():
            return f"not JSON ({error.msg})"
        case AdapterHubError():
            return error.message.removesuffix(".")
    return type(error).__name__
