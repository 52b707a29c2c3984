"""Reading the rows of local files, of every format.

Not with `datasets`, which gives every row the union of all rows' keys and writes a copy of the data to its cache.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

from adapterhub.errors import DatasetError

SampleBy: TypeAlias = Literal["line", "paragraph", "document"]
"""What one row of a `.txt` file is."""
SourceRow = dict[str, Any]
NEEDS_DATASETS = 'pip install "adapterhub[train]"'

_PARQUET_ROWS = 1024
_JSON_HINT = "Give one object a line, or one list of objects."
_CSV_HINT = "Quote fields that hold the delimiter, a quote or a line end; write a quote inside as two."
_FORMAT_HINTS = {
    ".jsonl": _JSON_HINT,
    ".ndjson": _JSON_HINT,
    ".json": _JSON_HINT,
    ".csv": _CSV_HINT,
    ".tsv": _CSV_HINT,
}


def read_file(path: Path, sample_by: SampleBy) -> Iterator[SourceRow]:
    """Reads the rows of a file as they are needed.

    Args:
        path: The file, with one of the suffixes of `READERS`.
        sample_by: What one row of a `.txt` file is.

    Raises:
        DatasetError: The file cannot be read or is damaged; the message has the row's number and never its text.
    """
    number = 0
    try:
        for number, row in enumerate(READERS[path.suffix.lower()](path, sample_by), start=1):
            if not isinstance(row, dict):
                raise ValueError(f"row {number} is not an object")
            yield row
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise DatasetError(
            f"The file {path.name!r} could not be read: {_reason(error, number)}.",
            hint=_hint(error, path.suffix.lower()),
        ) from None


def _reason(error: Exception, rows_before: int) -> str:
    match error:
        case json.JSONDecodeError():
            return f"row {rows_before + 1} is not JSON ({error.msg})"
        case UnicodeDecodeError():
            return f"after row {rows_before} it is not UTF-8"
        case RecursionError():
            return f"row {rows_before + 1} is nested too deep"
        case csv.Error():
            return f"row {rows_before + 1}: {error}"
        case OSError():
            return error.strerror or str(error)
        case _:
            return str(error)


def _hint(error: Exception, suffix: str) -> str | None:
    if isinstance(error, UnicodeDecodeError):
        return "Save it as UTF-8."
    return None if isinstance(error, OSError) else _FORMAT_HINTS.get(suffix)


def _json_lines(path: Path, _: SampleBy) -> Iterator[SourceRow]:
    with path.open(encoding="utf-8-sig") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def _json(path: Path, sample_by: SampleBy) -> Iterator[SourceRow]:
    with path.open(encoding="utf-8-sig") as file:
        if not file.read(64).lstrip().startswith("["):  # JSON Lines under the name of JSON
            yield from _json_lines(path, sample_by)
            return
        file.seek(0)
        yield from json.load(file)


def _csv(path: Path, _: SampleBy) -> Iterator[SourceRow]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        delimiter = max(",;\t", key=header.count)
        file.seek(0)
        for number, row in enumerate(csv.DictReader(file, delimiter=delimiter, strict=True), start=1):
            if None in row:
                raise ValueError(f"row {number} has more fields than the header")
            yield row


def _parquet(path: Path, _: SampleBy) -> Iterator[SourceRow]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DatasetError("Parquet files need the package 'pyarrow'.", hint=NEEDS_DATASETS) from error
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_PARQUET_ROWS):
                yield from map(without_nulls, batch.to_pylist())
    except ArrowException:  # whose text may quote the file
        raise ValueError("it is not a Parquet file, or is damaged") from None


def without_nulls(value: Any) -> Any:
    """Columns of Arrow have one type, so an object has every key of its column, most of them null."""
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


def _text(path: Path, sample_by: SampleBy) -> Iterator[SourceRow]:
    with path.open(encoding="utf-8-sig") as file:
        if sample_by == "document":
            yield {"text": file.read()}
        elif sample_by == "line":
            yield from ({"text": line.rstrip("\n")} for line in file)
        else:
            yield from ({"text": paragraph} for paragraph in _paragraphs(file))


def _paragraphs(lines: Iterable[str]) -> Iterator[str]:
    paragraph: list[str] = []
    for line in lines:
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield "".join(paragraph).rstrip("\n")
            paragraph = []
    if paragraph:
        yield "".join(paragraph).rstrip("\n")


READERS: dict[str, Callable[[Path, SampleBy], Iterator[SourceRow]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    ".txt": _text,
}
"""Suffix of a file's name -> what reads its rows."""
