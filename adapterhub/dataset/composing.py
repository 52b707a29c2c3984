"""Composing a dataset: reads the sources, and writes JSON Lines for training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from adapterhub._files import atomic_file, os_errors_as
from adapterhub.dataset.config import DatasetConfig
from adapterhub.dataset.reading import SourceReader, SourceReport
from adapterhub.dataset.records import Record, Sample
from adapterhub.errors import ConfigError, DatasetError

Progress = Callable[[str, int, int | None], None]
"""Called with the stage, how much is done, and how much there is, if that is known."""


@dataclass(frozen=True)
class ComposedDataset:
    """What was composed.

    Attributes:
        train_path: The file with the training records.
        val_path: The file with the held-out records, if there is one.
        train: Number of training records.
        val: Number of held-out records.
        sources: What was read of each source.
    """

    train_path: Path
    val_path: Path | None
    train: int
    val: int
    sources: tuple[SourceReport, ...]


def compose_dataset(config: DatasetConfig, *, progress: Progress | None = None) -> ComposedDataset:
    """Composes a dataset and writes its files; after an error none of them has changed.

    Args:
        config: The sources, the stages and the files.
        progress: Called now and then.

    Raises:
        ConfigError: A converter or a file that the configuration names cannot be used.
        DatasetError: A source cannot be read, no record is left, or the files cannot be written.
    """
    show = progress or (lambda stage, done, total: None)
    readers = [
        SourceReader(source, label) for source, label in zip(config.sources, _labels(config), strict=True)
    ]
    reports = tuple(reader.report for reader in readers)
    _check_paths(config, reports)
    samples = [sample for reader in readers for sample in _read(reader, show)]
    with os_errors_as(DatasetError, "The dataset could not be written"), ExitStack() as files:
        _write(files, config.train_path, samples)
    return ComposedDataset(config.train_path, None, len(samples), 0, reports)


def _labels(config: DatasetConfig) -> list[str]:
    """A label for each source; those that come again are numbered."""
    labels: list[str] = []
    for source in config.sources:
        label, count = source.label, 1
        while label in labels:
            count += 1
            label = f"{source.label} ({count})"
        labels.append(label)
    return labels


def _check_paths(config: DatasetConfig, reports: Iterable[SourceReport]) -> None:
    written = {path.resolve() for path in (config.train_path, config.val_path) if path}
    for report in reports:
        if written & {file.resolve() for file in report.files}:
            raise ConfigError(
                f"The source {report.label!r} would be overwritten.",
                hint="Give another train_path or val_path.",
            )


def _read(reader: SourceReader, show: Progress) -> Iterator[Sample]:
    stage = f"Reading {reader.report.label}"
    yield from reader.samples(lambda rows: show(stage, rows, None))
    show(stage, reader.report.rows, reader.report.rows)


def _write(files: ExitStack, path: Path, samples: Iterable[Sample]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file: BinaryIO = files.enter_context(atomic_file(path))
    file.writelines(_line(sample.record) for sample in samples)
    file.flush()  # a full disk is noticed before any file is replaced


def _line(record: Record) -> bytes:
    return record.model_dump_json(exclude_none=True, exclude={"line"}).encode() + b"\n"
