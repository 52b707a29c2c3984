"""From a JSON Lines file of conversations to token ids and labels.

Only assistant messages carry loss, each with its end token. The conversation is rendered and tokenised as a whole;
tokenising messages one by one would give other tokens. It is also rendered up to each answer, which gives the answer's
span of characters, and the tokens in that span get labels. So a chat template needs no `{% generation %}` markers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from adapterhub.engine.tokenizer import Message as PromptMessage
from adapterhub.errors import DatasetError, InvalidRequestError, describe_validation
from adapterhub.requests import prompts
from adapterhub.requests.encoding import PromptEncoder, RenderedPrompt

IGNORE_INDEX = -100
"""Label of a token that carries no loss, `ignore_index` of torch's cross entropy."""

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


@dataclass(frozen=True)
class TokenizedExample:
    """One tokenised record; `labels` has the length of `input_ids`, with `IGNORE_INDEX` where there is no loss."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class TokenizedDataset:
    """The tokenised records of a dataset.

    Attributes:
        examples: In the records' order.
        truncated: Number of examples that were cut to `max_length`.
        dropped: Number of records left out because no answer token lies within `max_length`.
    """

    examples: list[TokenizedExample]
    truncated: int
    dropped: int


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
        with path.open(encoding="utf-8") as lines:
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


def tokenize(
    records: Sequence[Record],
    tokenizer: Any,
    style: prompts.PromptStyle,
    *,
    max_length: int,
    system: str | None = None,
) -> TokenizedDataset:
    """Tokenises records and labels the assistant's tokens.

    Args:
        records: The records, from `read_records`.
        tokenizer: A fast tokenizer, which returns character offsets.
        style: How prompts are rendered, as in serving.
        max_length: Maximum number of tokens; longer examples are cut at the end.
        system: System prompt of records without one, as in serving.

    Raises:
        DatasetError: The chat template fails on a record, ignores its tools, or renders an answer differently
            once more messages follow; or no record has an answer within `max_length`.
    """
    if not tokenizer.is_fast:
        raise DatasetError(
            "The base's tokenizer returns no character offsets, so answer tokens cannot be labelled."
        )
    record_tokenizer = _RecordTokenizer(tokenizer, style, system)
    full = [record_tokenizer.tokenize(record) for record in records]
    shortened = [
        TokenizedExample(example.input_ids[:max_length], example.labels[:max_length]) for example in full
    ]
    # Nothing predicts the first token, so its label carries no loss.
    usable = [
        index
        for index, example in enumerate(shortened)
        if any(label != IGNORE_INDEX for label in example.labels[1:])
    ]
    if not usable:
        raise DatasetError(
            f"Not one of {len(records)} records has an answer within {max_length} tokens.",
            hint="Raise train.max_length, or shorten the prompts.",
        )
    truncated = sum(len(full[i].input_ids) > max_length for i in usable)
    return TokenizedDataset([shortened[i] for i in usable], truncated, len(shortened) - len(usable))


def _parse(line: str, number: int, records: list[Record], problems: list[str]) -> None:
    try:
        content = json.loads(line)
        if not isinstance(content, dict):
            raise TypeError("not an object")
        records.append(Record.model_validate({**content, "line": number}))
    except (ValidationError, ValueError, TypeError, RecursionError) as error:
        problems.append(f"line {number}: {_reason(error)}")


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


class _RecordTokenizer:
    """Renders, tokenises and labels one record at a time."""

    def __init__(self, tokenizer: Any, style: prompts.PromptStyle, system: str | None) -> None:
        self._tokenizer = tokenizer
        self._encoder = PromptEncoder(tokenizer)
        self._style = style
        self._system = system
        added = (token_id for token_id, token in tokenizer.added_tokens_decoder.items() if token.special)
        self._special = frozenset([*tokenizer.all_special_ids, *added])

    def tokenize(self, record: Record) -> TokenizedExample:
        messages = prompts.conversation(
            [message.model_dump(exclude_unset=True) for message in record.messages], self._system
        )
        prompt = self._render(record, messages)
        encoded = self._encoder.encode_with_offsets(prompt)
        ids = encoded.token_ids
        labels = [IGNORE_INDEX] * len(ids)
        for span in self._spans(record, messages, prompt.text):
            for index in self._answer_tokens(ids, encoded.offsets, span):
                labels[index] = ids[index]
        return self._with_end_token(ids, labels)

    def _render(
        self, record: Record, messages: Sequence[PromptMessage], *, add_generation_prompt: bool = False
    ) -> RenderedPrompt:
        def rendered(tools: list[dict[str, Any]] | None) -> RenderedPrompt:
            return self._encoder.render(
                messages, self._style, tools=tools, add_generation_prompt=add_generation_prompt
            )

        try:
            prompt = rendered(record.tools)
            renders_tools = not record.tools or prompt.text != rendered(None).text
        except (InvalidRequestError, TypeError, ValueError):
            raise DatasetError(
                f"The chat template fails on the record at line {record.line}.",
                hint="Templates differ in the roles, orders and tools that they take.",
            ) from None
        if not renders_tools:
            raise DatasetError(
                f"The chat template leaves out the tools of the record at line {record.line}.",
                hint="Write the tools into the system message, or give a template that knows tools.",
            )
        return prompt

    def _spans(
        self, record: Record, messages: Sequence[PromptMessage], whole: str
    ) -> Iterator[tuple[int, int]]:
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(record, messages[:index], add_generation_prompt=True).text
            last = index == len(messages) - 1
            after = whole if last else self._render(record, messages[: index + 1]).text
            if not (after.startswith(before) and whole.startswith(after)):
                raise DatasetError(
                    f"The chat template renders an answer of the record at line {record.line} differently "
                    "once more messages follow, so the answer's tokens cannot be found.",
                    hint="Split such conversations, so that each has one assistant message, the last.",
                )
            yield len(before), len(after)

    def _answer_tokens(
        self, ids: list[int], offsets: list[tuple[int, int]], span: tuple[int, int]
    ) -> list[int]:
        inside = [index for index, (start, end) in enumerate(offsets) if end > span[0] and start < span[1]]
        ends = [i for i in inside if ids[i] in self._special]
        # Templates write a line break after the end token of a message; generation stops before it.
        return [i for i in inside if i <= ends[-1]] if ends else inside

    def _with_end_token(self, ids: list[int], labels: list[int]) -> TokenizedExample:
        end = self._tokenizer.eos_token_id
        if labels[-1] == IGNORE_INDEX or labels[-1] in self._special or end is None:
            return TokenizedExample(ids, labels)
        # The template writes no end token; without one the model would not learn to stop.
        return TokenizedExample([*ids, end], [*labels, end])
