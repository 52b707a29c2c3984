"""Composing a dataset: reads the sources, runs the stages, and writes JSON Lines for training."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from adapterhub._files import atomic_file, os_errors_as
from adapterhub.dataset.card_markdown import card_as_markdown
from adapterhub.dataset.cleaning import clean
from adapterhub.dataset.composed import ComposedDataset, SourceReport, StageReport, dropped_in_all
from adapterhub.dataset.config import DatasetConfig, SourceOptions
from adapterhub.dataset.data_card import DataCard, PartCard, length_histogram
from adapterhub.dataset.filters import filter_samples
from adapterhub.dataset.mixing import cap, weigh
from adapterhub.dataset.near_duplicates import deduplicate
from adapterhub.dataset.reading import SourceReader
from adapterhub.dataset.records import Record, Sample
from adapterhub.dataset.splitting import split
from adapterhub.dataset.stages import Progress, StageResult, shown
from adapterhub.dataset.token_counts import TokenCounter
from adapterhub.errors import ConfigError, DatasetError
from adapterhub.reports import histogram

_Stage = Callable[[Iterable[Sample]], StageResult]
_REASONS_SHOWN = 5
_CARD, _MARKDOWN, _PICTURE = _BESIDE = ".card.json", ".card.md", ".lengths.svg"
"""Ends of the names of the files beside the training records."""


def compose_dataset(config: DatasetConfig, *, progress: Progress | None = None) -> ComposedDataset:
    """Composes a dataset and writes its files; after an error none of them has changed.

    Args:
        config: The sources, the stages and the files.
        progress: Called now and then.

    Raises:
        ConfigError: A converter, tokenizer or file that the configuration names cannot be used.
        DatasetError: A source cannot be read, no record is left, or the files cannot be written.
    """
    histogram({})  # a missing package is noticed before the work
    composed = _Composition(config, progress or (lambda stage, done, total: None)).run()
    with os_errors_as(DatasetError, "The dataset could not be written"), ExitStack() as files:
        train = _write_part(files, composed.train_path, composed.train)
        val = _write_part(files, composed.val_path, composed.val) if composed.val_path else None
        card = DataCard.of(config, composed, (train, val))
        picture = _beside(composed.train_path, _PICTURE)
        parts = {"train": composed.train, **({"validation": composed.val} if val else {})}
        _write(files, picture, [length_histogram(parts).encode()])
        _write(files, composed.card_path, [card.to_json().encode()])
        markdown = _beside(composed.train_path, _MARKDOWN)
        _write(files, markdown, [card_as_markdown(card, picture.name).encode()])
    return composed


class _Composition:
    """One run: the samples pass the stages in order, and each leaves a report."""

    def __init__(self, config: DatasetConfig, show: Progress) -> None:
        self._config, self._show = config, show
        self._labels = _labels(config)
        self._readers = [
            SourceReader(source, label) for source, label in zip(config.sources, self._labels, strict=True)
        ]
        self._sources = [reader.report for reader in self._readers]
        _check_paths(config, self._sources)
        self._count_tokens = TokenCounter.of_base(config.tokenizer) if config.tokenizer else None
        self._stages: list[StageReport] = []

    def run(self) -> ComposedDataset:
        config = self._config
        samples = [sample for reader in self._readers for sample in self._read(reader)]
        samples = self._run("cleaning", lambda part: clean(part, config.cleaning), samples)
        samples = self._run(
            "filters", lambda part: filter_samples(part, config.filters, self._count_tokens), samples
        )
        samples = self._run("deduplication", lambda part: deduplicate(part, config.deduplication), samples)
        caps = {label: source.max_records for label, source in self._by_label()}
        samples = self._run("caps", lambda part: cap(part, caps, seed=config.seed), samples)
        held_out: Sequence[Sample] = ()
        if config.val_path:
            removed = config.deduplication
            are_distinct = removed.near and removed.threshold <= config.split.threshold
            samples, held_out = split(
                samples, config.split, seed=config.seed, are_distinct=are_distinct, progress=self._show
            )
        weights = {label: source.weight for label, source in self._by_label()}
        train = self._run("weights", lambda part: weigh(part, weights, seed=config.seed), samples)
        return ComposedDataset(
            config.train_path,
            config.val_path,
            _beside(config.train_path, _CARD),
            train,
            held_out,
            self._sources,
            self._stages,
        )

    def _by_label(self) -> Iterator[tuple[str, SourceOptions]]:
        return zip(self._labels, self._config.sources, strict=True)

    def _read(self, reader: SourceReader) -> Iterator[Sample]:
        stage = f"reading {reader.report.label}"
        yield from reader.samples(lambda rows: self._show(stage, rows, None))
        self._show(stage, reader.report.rows, reader.report.rows)

    def _run(self, name: str, stage: _Stage, samples: Sequence[Sample]) -> list[Sample]:
        result = stage(shown(samples, name, self._show))
        self._stages.append(StageReport(name, len(samples), len(result.kept), result.dropped, result.changed))
        if not result.kept:
            raise self._nothing_left(name)
        return result.kept

    def _nothing_left(self, stage: str) -> DatasetError:
        reasons = dropped_in_all(self._sources, self._stages).most_common(_REASONS_SHOWN)
        rows = sum(source.rows for source in self._sources)
        dropped = ", ".join(f"{reason} {count:,}" for reason, count in reasons)
        return DatasetError(
            f"No record is left after {stage}: {rows:,} rows were read; dropped: {dropped}.",
            hint="Loosen the options that dropped them.",
        )


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
    beside = (_beside(config.train_path, suffix) for suffix in _BESIDE)
    paths = [path for path in (config.train_path, config.val_path, *beside) if path]
    if folder := next((path for path in paths if path.is_dir()), None):
        raise ConfigError(
            f"{str(folder)!r} is a folder.", hint="Give the path of a file, such as train.jsonl."
        )
    written = Counter(path.resolve() for path in paths)
    if twice := next((path for path, times in written.items() if times > 1), None):
        raise ConfigError(
            f"Two files would be written to {str(twice)!r}.", hint="Give another train_path or val_path."
        )
    for report in reports:
        if any(file.resolve() in written for file in report.files):
            raise ConfigError(
                f"The source {report.label!r} would be overwritten.",
                hint="Give another train_path or val_path.",
            )


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.stem + suffix)


def _write_part(files: ExitStack, path: Path, samples: Sequence[Sample]) -> PartCard:
    digest = hashlib.sha256()

    def lines() -> Iterator[bytes]:
        for sample in samples:
            line = _line(sample.record)
            digest.update(line)
            yield line

    _write(files, path, lines())
    return PartCard.of(path.name, digest.hexdigest(), samples)


def _write(files: ExitStack, path: Path, lines: Iterable[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = files.enter_context(atomic_file(path))
    file.writelines(lines)
    file.flush()  # a full disk is noticed before any file is replaced


def _line(record: Record) -> bytes:
    return record.model_dump_json(exclude_none=True, exclude={"line"}).encode() + b"\n"
