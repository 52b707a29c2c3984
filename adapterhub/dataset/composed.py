"""What composing a dataset has done: the record of each stage, for the data card and for callers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adapterhub.dataset.records import Sample


@dataclass
class SourceReport:
    """What was read of a source.

    Attributes:
        label: The source's name on the data card.
        converter: The converter that was used.
        files: Its local files.
        license: Its licence, as configured, or else as its dataset card states.
        revision: Its commit on the Hub, or what was configured.
        rows: Rows read.
        dropped: Number of rows that are no conversation, by reason.
    """

    label: str
    converter: str
    files: tuple[Path, ...] = ()
    license: str | None = None
    revision: str | None = None
    rows: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class StageReport:
    """What a stage has done.

    Attributes:
        name: `cleaning`, `filters`, `deduplication`, `caps` or `weights`.
        given: Number of samples before it.
        kept: Number of samples after it.
        dropped: Number of samples that did not, by reason.
        changed: Number of samples that were changed, by what was done.
    """

    name: str
    given: int
    kept: int
    dropped: Counter[str]
    changed: Counter[str]


@dataclass(frozen=True)
class ComposedDataset:
    """A composed dataset.

    Attributes:
        train_path: The file with the training records.
        val_path: The file with the held-out records, if there is one.
        card_path: The data card as JSON; the same as Markdown and the picture of lengths lie beside it.
        train: The training samples, in the file's order.
        val: The held-out samples, in the file's order.
        sources: What was read of each source.
        stages: What each stage has done, in their order.
    """

    train_path: Path
    val_path: Path | None
    card_path: Path
    train: Sequence[Sample]
    val: Sequence[Sample]
    sources: Sequence[SourceReport]
    stages: Sequence[StageReport]

    @property
    def dropped(self) -> Counter[str]:
        """Number of rows and samples that were left out in all, by reason."""
        return dropped_in_all(self.sources, self.stages)


def dropped_in_all(sources: Sequence[SourceReport], stages: Sequence[StageReport]) -> Counter[str]:
    """The number of rows and samples that were left out, by reason."""
    dropped = [*(source.dropped for source in sources), *(stage.dropped for stage in stages)]
    return sum(dropped, Counter[str]())
