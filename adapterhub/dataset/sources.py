"""From a source to its rows.

Files are read here and not with `datasets`, which gives every row the union of all rows' keys and writes a copy of the
data to its cache. Folders and hub ids are read by `datasets.load_dataset`.
"""

from __future__ import annotations

import csv
import glob
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.errors import DatasetError

if TYPE_CHECKING:
    from adapterhub.dataset.config import SourceOptions

SourceRow = dict[str, Any]
SPLIT = re.compile(
    r"(?P<name>\w[\w.-]*)(?P<slice>\[(?P<start>-?\d{1,15}%?)?:(?P<stop>-?\d{1,15}%?)?\])?", re.ASCII
)
"""A split or a slice of one, as `datasets` writes them."""

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
_NEEDS_DATASETS = 'pip install "adapterhub[train]"'


@dataclass(frozen=True)
class OpenSource:
    """A source that can be read.

    Attributes:
        rows: The rows of the slice, read as they are needed.
        files: Its local files.
        license: The licence that its dataset card states.
        revision: Its commit on the Hub.
    """

    rows: Iterator[SourceRow]
    files: tuple[Path, ...] = ()
    license: str | None = None
    revision: str | None = None


def open_source(source: SourceOptions) -> OpenSource:
    """Opens a source.

    Args:
        source: Local files, or a dataset of `datasets`.

    Raises:
        DatasetError: There is no such file or dataset, or the Hub cannot be reached. Reading the rows raises it too,
            for damaged files. Messages never have a row's text.
    """
    if not source.is_file:
        if Path(source.path).is_file():
            raise DatasetError(
                f"Files such as {source.label!r} are not read.",
                hint=f"The suffixes are {', '.join(READERS)}.",
            )
        return _open_dataset(source)
    files = tuple(_files(source.path))
    bounds = SPLIT.fullmatch(source.split)
    rows = (row for file in files for row in _read_file(file, source))
    return OpenSource(
        _sliced(rows, bounds["start"] if bounds else None, bounds["stop"] if bounds else None), files
    )


def _files(path: str) -> list[Path]:
    if Path(path).is_file():
        return [Path(path)]
    found = sorted(glob.glob(path, recursive=True))  # noqa: PTH207  an absolute pattern
    if not found:
        raise DatasetError(
            f"There is no file {path!r}.",
            hint="Relative paths are taken from the configuration file's folder.",
        )
    return [Path(file) for file in found]


def _read_file(path: Path, source: SourceOptions) -> Iterator[SourceRow]:
    number = 0
    try:
        for number, row in enumerate(READERS[path.suffix.lower()](path, source), start=1):
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


def _json_lines(path: Path, _: SourceOptions) -> Iterator[SourceRow]:
    with path.open(encoding="utf-8-sig") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def _json(path: Path, source: SourceOptions) -> Iterator[SourceRow]:
    with path.open(encoding="utf-8-sig") as file:
        if not file.read(64).lstrip().startswith("["):  # JSON Lines under the name of JSON
            yield from _json_lines(path, source)
            return
        file.seek(0)
        yield from json.load(file)


def _csv(path: Path, _: SourceOptions) -> Iterator[SourceRow]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        delimiter = max(",;\t", key=header.count)
        file.seek(0)
        for number, row in enumerate(csv.DictReader(file, delimiter=delimiter, strict=True), start=1):
            if None in row:
                raise ValueError(f"row {number} has more fields than the header")
            yield row


def _parquet(path: Path, _: SourceOptions) -> Iterator[SourceRow]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DatasetError("Parquet files need the package 'pyarrow'.", hint=_NEEDS_DATASETS) from error
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_PARQUET_ROWS):
                yield from map(_without_nulls, batch.to_pylist())
    except ArrowException:  # whose text may quote the file
        raise ValueError("it is not a Parquet file, or is damaged") from None


def _text(path: Path, source: SourceOptions) -> Iterator[SourceRow]:
    with path.open(encoding="utf-8-sig") as file:
        if source.sample_by == "document":
            yield {"text": file.read()}
        elif source.sample_by == "line":
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


READERS: dict[str, Callable[[Path, SourceOptions], Iterator[SourceRow]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
    ".txt": _text,
}
"""Suffix of a file's name -> what reads its rows."""


def _open_dataset(source: SourceOptions) -> OpenSource:
    try:
        import datasets
    except ImportError as error:
        raise DatasetError(
            f"Reading {source.label!r} needs the package 'datasets'.", hint=_NEEDS_DATASETS
        ) from error
    bounds = SPLIT.fullmatch(source.split) if source.streaming else None
    options: dict[str, Any] = {"trust_remote_code": True} if source.trust_remote_code else {}
    try:
        dataset = datasets.load_dataset(
            source.path,
            source.subset,
            split=bounds["name"] if bounds else source.split,
            revision=source.revision,
            streaming=source.streaming,
            **options,
        )
    except Exception as error:
        raise _unreadable(source, error) from error
    rows = _dataset_rows(source, dataset)
    if bounds:
        rows = _sliced(rows, bounds["start"], bounds["stop"])
    license_id, revision = _dataset_card(source)
    return OpenSource(rows, license=license_id, revision=revision)


def _dataset_card(source: SourceOptions) -> tuple[str | None, str | None]:
    """The licence that the card of a dataset states, and the commit that it was read at; None for what is not known."""
    from huggingface_hub import DatasetCard, hf_hub_download

    path = Path(source.path, "README.md")
    is_folder = path.parent.is_dir()
    try:
        if not is_folder:
            found = hf_hub_download(source.path, path.name, repo_type="dataset", revision=source.revision)
            path = Path(found)
        stated = DatasetCard.load(path, ignore_metadata_errors=True).data.license
    except (OSError, ValueError, AttributeError):  # no card, or not a readable one
        return None, None
    licenses = [one for one in (stated if isinstance(stated, list) else [stated]) if isinstance(one, str)]
    commit = None if is_folder else path.parent.name  # the name of a snapshot's folder
    return ", ".join(licenses) or None, commit


def _dataset_rows(source: SourceOptions, dataset: Iterable[SourceRow]) -> Iterator[SourceRow]:
    try:
        yield from map(_without_nulls, dataset)
    except Exception as error:
        raise _unreadable(source, error, type(error).__name__) from error  # its text may quote the row


def _unreadable(source: SourceOptions, error: Exception, reason: str = "") -> DatasetError:
    if isinstance(error, ConnectionError):
        return DatasetError(
            f"The dataset {source.label!r} could not be loaded: the Hub cannot be reached, or has no such dataset.",
            hint="Check its name and the network; `HF_HUB_OFFLINE` must not be set.",
        )
    if not reason and (type(error) is ValueError or isinstance(error, FileNotFoundError)):
        reason = next(iter(str(error).splitlines()), "")
    return DatasetError(
        f"The dataset {source.label!r} could not be loaded: {reason or type(error).__name__}",
        hint="Check path, subset, split and revision; for a gated dataset log in with `hf auth login`.",
    )


def _without_nulls(value: Any) -> Any:
    """Columns of Arrow have one type, so an object has every key of its column, most of them null."""
    if isinstance(value, dict):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


def _sliced(rows: Iterator[SourceRow], start: str | None, stop: str | None) -> Iterator[SourceRow]:
    given = [bound for bound in (start, stop) if bound]
    if all(bound.isdigit() for bound in given):
        return islice(rows, int(start or 0), int(stop) if stop else None)
    return _sliced_from_end(rows, start, stop)


def _sliced_from_end(rows: Iterator[SourceRow], start: str | None, stop: str | None) -> Iterator[SourceRow]:
    """A share, or a distance from the end, needs the number of all rows."""
    every = list(rows)
    places = [_place(bound, len(every)) if bound else None for bound in (start, stop)]
    yield from every[slice(*places)]


def _place(bound: str, rows: int) -> int:
    return round(int(bound[:-1]) * rows / 100) if bound.endswith("%") else int(bound)
