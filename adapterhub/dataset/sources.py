"""From a source to its rows: local files are read by our own readers, folders and hub ids by `datasets`."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from adapterhub.dataset.config import SPLIT, SourceOptions
from adapterhub.dataset.file_readers import NEEDS_DATASETS, READERS, SourceRow, read_file, without_nulls
from adapterhub.errors import DatasetError


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
    rows = (row for file in files for row in read_file(file, source.sample_by))
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


def _open_dataset(source: SourceOptions) -> OpenSource:
    try:
        import datasets
    except ImportError as error:
        raise DatasetError(
            f"Reading {source.label!r} needs the package 'datasets'.", hint=NEEDS_DATASETS
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
        yield from map(without_nulls, dataset)
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
