"""The data card: where a dataset comes from, what was dropped and changed, and what is in its files.

It has no time and no path of this machine: the same data gives the same card.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from adapterhub._files import sha256_file
from adapterhub.base.locating import is_local_base
from adapterhub.dataset.composed import ComposedDataset
from adapterhub.dataset.config import DatasetConfig
from adapterhub.dataset.records import Sample
from adapterhub.reports import histogram


class _Card(BaseModel):
    model_config = ConfigDict(frozen=True)


class Distribution(_Card):
    """How numbers are distributed."""

    min: float
    mean: float
    median: float
    p95: float
    max: float
    total: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self | None:
        """The distribution of numbers; None if there are none."""
        if not values:
            return None
        import numpy as np

        names = ("min", "median", "p95", "max")
        quantiles = np.quantile(values, (0, 0.5, 0.95, 1)).tolist()
        figures = {**dict(zip(names, quantiles, strict=True)), "mean": float(np.mean(values))}
        return cls(total=sum(values), **{name: round(figure, 2) for name, figure in figures.items()})


class FileCard(_Card):
    """A file that was read."""

    name: str
    sha256: str


class SourceCard(_Card):
    """One source: what was read of it, and what is left."""

    name: str
    license: str | None
    revision: str | None
    converter: str
    files: list[FileCard]
    """Its local files."""
    rows: int
    dropped: dict[str, int]
    """Rows that were no conversation, by reason."""
    train: int
    val: int


class StageCard(_Card):
    """One stage: how many records it let pass, dropped and changed."""

    name: str
    kept: int
    dropped: dict[str, int]
    changed: dict[str, int]


class PartCard(_Card):
    """One of the files that were written."""

    file: str
    sha256: str
    records: int
    tokens: Distribution | None
    """Tokens of a record, with the chat template; None without a tokenizer."""
    characters: Distribution | None
    """Characters that users and the assistant say in a record."""
    answer_characters: Distribution | None
    ratings: Distribution | None
    """Of the records that have one."""

    @classmethod
    def of(cls, file: str, sha256: str, samples: Sequence[Sample]) -> Self:
        """The card of a file.

        Args:
            file: Its name.
            sha256: The digest of its content.
            samples: The samples in it.
        """
        return cls(
            file=file,
            sha256=sha256,
            records=len(samples),
            tokens=Distribution.of([one.tokens for one in samples if one.tokens is not None]),
            characters=Distribution.of([len(one.record.conversation) for one in samples]),
            answer_characters=Distribution.of([len(one.record.answers) for one in samples]),
            ratings=Distribution.of([one.rating for one in samples if one.rating is not None]),
        )


class DataCard(_Card):
    """The data card of a composed dataset."""

    seed: int
    tokenizer: str | None
    sources: list[SourceCard]
    stages: list[StageCard]
    train: PartCard
    val: PartCard | None

    @classmethod
    def of(
        cls,
        config: DatasetConfig,
        composed: ComposedDataset,
        parts: tuple[PartCard, PartCard | None],
    ) -> Self:
        """The data card of a dataset.

        Args:
            config: What it was composed by.
            composed: What was done.
            parts: The cards of the training and the validation file.
        """
        train, val = (Counter(sample.source for sample in part) for part in (composed.train, composed.val))
        tokenizer = config.tokenizer
        return cls(
            seed=config.seed,
            tokenizer=Path(tokenizer).name if tokenizer and is_local_base(tokenizer) else tokenizer,
            sources=[
                SourceCard(
                    name=report.label,
                    license=report.license,
                    revision=report.revision,
                    converter=report.converter,
                    files=[FileCard(name=file.name, sha256=sha256_file(file)) for file in report.files],
                    rows=report.rows,
                    dropped=_counts(report.dropped),
                    train=train[report.label],
                    val=val[report.label],
                )
                for report in composed.sources
            ],
            stages=[
                StageCard(
                    name=stage.name,
                    kept=stage.kept,
                    dropped=_counts(stage.dropped),
                    changed=_counts(stage.changed),
                )
                for stage in composed.stages
            ],
            train=parts[0],
            val=parts[1],
        )

    def to_json(self) -> str:
        """The card as JSON."""
        return self.model_dump_json(indent=2) + "\n"


def length_histogram(parts: Mapping[str, Sequence[Sample]]) -> str:
    """A histogram of the records' lengths as SVG: in tokens if they were counted, else in characters.

    Args:
        parts: The samples of each file, by what they are for.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    counted = all(sample.tokens is not None for part in parts.values() for sample in part)
    lengths = {
        name: [float(sample.tokens or 0 if counted else len(sample.record.conversation)) for sample in part]
        for name, part in parts.items()
    }
    unit = "tokens" if counted else "characters"
    return histogram(lengths, title="Lengths of the records", x_label=unit, y_label="records")


def _counts(counter: Counter[str]) -> dict[str, int]:
    return dict(sorted(counter.items(), key=lambda item: (-item[1], item[0])))
