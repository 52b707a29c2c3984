"""From the rows of a source to checked samples, with a count of the rows that are none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, pairwise
from typing import Any

from pydantic import ValidationError

from adapterhub.dataset.columns import Columns, UnusableRowError, shared_prompts
from adapterhub.dataset.composed import SourceReport
from adapterhub.dataset.config import AUTO, SourceOptions
from adapterhub.dataset.converters import CONVERTERS, Conversation, Converter, detect_converter
from adapterhub.dataset.file_readers import SourceRow
from adapterhub.dataset.own_converter import load_own_converter
from adapterhub.dataset.records import Message, Record, Sample
from adapterhub.dataset.sources import open_source
from adapterhub.errors import ConfigError, DatasetError

_ROWS_BETWEEN_REPORTS = 200
_NAMES_SHOWN = 20
_LONGEST_NAME = 40


class SourceReader:
    """Reads one source.

    Args:
        source: The source.
        label: Its name on the data card.

    Raises:
        ConfigError: The converter cannot be imported, or the file of the system message cannot be read.
        DatasetError: There is no such source.
    """

    def __init__(self, source: SourceOptions, label: str) -> None:
        self._source = source
        self._system = _system_message(source)
        self._shared_prompts = shared_prompts(source.prompts)
        self._convert: Converter | None = None
        self._detected_names: set[str] = set()
        if source.converter != AUTO:
            self._convert = CONVERTERS.get(source.converter) or load_own_converter(source.converter)
        opened = open_source(source)
        self._rows = islice(opened.rows, source.max_records) if source.streaming else opened.rows
        self.report = SourceReport(
            label,
            source.converter,
            opened.files,
            source.license or opened.license,
            opened.revision or source.revision,
        )

    def samples(self, progress: Callable[[int], None] | None = None) -> Iterator[Sample]:
        """Reads and converts the rows, once.

        Args:
            progress: Called now and then with the number of rows read.

        Raises:
            DatasetError: The source is damaged, or none of its rows is a conversation.
        """
        report, columns = self.report, None
        for report.rows, row in enumerate(self._rows, start=1):
            columns = Columns(row, self._source.mapping, self._source.prompts, report.rows)
            try:
                yield self._sample(columns)
            except UnusableRowError as reason:
                report.dropped[str(reason)] += 1
            if progress and report.rows % _ROWS_BETWEEN_REPORTS == 0:
                progress(report.rows)
        if report.rows == report.dropped.total():
            raise _nothing_usable(report, columns.row if columns else None)

    def _sample(self, columns: Columns) -> Sample:
        record = self._record(columns)
        asked = [message.content for message in record.messages if message.role == "user"]
        is_shared = len(asked) == 1 and asked[0] in self._shared_prompts
        return Sample(record, self.report.label, _rating(columns), has_shared_prompt=is_shared)

    def _record(self, columns: Columns) -> Record:
        record = _checked((self._convert or self._detected(columns))(columns), columns.number)
        if self._system is None or record.messages[0].role == "system":
            return record
        return record.model_copy(update={"messages": [self._system, *record.messages]})

    def _detected(self, columns: Columns) -> Converter:
        """The converter of this row: an optional column may come with a later row only."""
        name = detect_converter(columns)
        if name not in self._detected_names:
            self._detected_names.add(name)
            self.report.converter = f"{AUTO}: {', '.join(sorted(self._detected_names))}"
        return CONVERTERS[name]


def _system_message(source: SourceOptions) -> Message | None:
    text = source.system
    if source.system_file is not None:
        try:
            text = source.system_file.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or "it is not UTF-8 text"
            raise ConfigError(
                f"The system message {str(source.system_file)!r} cannot be read: {reason}."
            ) from None
    return Message(role="system", content=text) if text else None


def _checked(conversation: Conversation, line: int) -> Record:
    try:
        record = Record.model_validate({**conversation, "line": line})
        record.model_dump_json()  # half of a surrogate pair cannot be written
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(part for part in first["loc"] if isinstance(part, str))
        raise UnusableRowError(f"{place}: {first['msg']}" if place else first["msg"]) from None
    except ValueError:
        raise UnusableRowError("not valid Unicode") from None
    _check_order(record.messages)
    return record


def _check_order(messages: Sequence[Message]) -> None:
    """Chat templates of several families refuse other orders, in the middle of a run."""
    roles = [message.role for message in messages]
    if "system" in roles[1:]:
        raise UnusableRowError("a system message is not the first")
    turns = [role for role in roles if role != "system"]
    if len(turns) > 1 and turns[0] != "user":
        raise UnusableRowError("the first message is not the user's")
    if any(one == other != "tool" for one, other in pairwise(turns)):
        raise UnusableRowError("user and assistant do not alternate")


def _rating(columns: Columns) -> float | None:
    value = columns.value("rating", "score")
    try:
        rating = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return rating if math.isfinite(rating) else None


def _nothing_usable(report: SourceReport, row: SourceRow | Mapping[str, Any] | None) -> DatasetError:
    if row is None:
        return DatasetError(f"The source {report.label!r} holds no rows.", hint="Check its path and split.")
    reason, count = report.dropped.most_common(1)[0]
    is_table = any(file.suffix.lower() in (".csv", ".tsv") for file in report.files)
    # Without a header the first row of a table is taken for the names.
    names = [repr(name) if len(name) <= _LONGEST_NAME else "a long text" for name in map(str, row)]
    return DatasetError(
        f"No row of {report.label!r} became a conversation: {reason} ({count:,} of {report.rows:,} rows). "
        f"Its columns are {', '.join(names[:_NAMES_SHOWN])}.",
        hint="Set `converter`, and `mapping` from the converter's names to these columns."
        + (" The first line of the file has to name them." if is_table else ""),
    )
