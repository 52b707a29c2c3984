"""What comes before a run: its dataset is composed, or the run is shortened to try it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adapterhub._files import scratch_folder
from adapterhub.dataset.composing import compose_dataset
from adapterhub.dataset.config import DatasetConfig, SourceOptions
from adapterhub.errors import DatasetError
from adapterhub.training.config import FinetuneConfig

_SMOKE_STEPS = 20
_WITHOUT = dict.fromkeys(("epochs", "eval_every", "save_every", "early_stopping_patience")) | {
    "load_best": False,
    "resume": False,
}
_NOT_KEPT = DatasetConfig.model_fields["train_path"].default


@contextmanager
def with_composed_data(
    config: FinetuneConfig, progress: Callable[[str, int, int | None], None] | None = None
) -> Iterator[FinetuneConfig]:
    """The run with its dataset composed, if it has one to compose; files that it names no place for go at the end.

    Args:
        config: The run.
        progress: As for `compose_dataset`.

    Raises:
        ConfigError: A source's configuration cannot be used.
        DatasetError: A source cannot be read, or no record is left.
    """
    dataset = config.data.compose
    if dataset is None:
        yield config
        return
    with scratch_folder(DatasetError, "The dataset could not be composed") as scratch:
        if dataset.train_path == _NOT_KEPT:
            dataset = dataset.model_copy(update={"train_path": scratch / _NOT_KEPT})
        composed = compose_dataset(dataset, progress=progress)
        data = config.data.model_copy(
            update={
                "train": composed.train_path,
                "validation": config.data.validation or composed.val_path,
                "compose": None,
            }
        )
        yield config.model_copy(update={"data": data})


def shortened(config: FinetuneConfig) -> FinetuneConfig:
    """The run with at most twenty steps and the records for them, and without files."""
    train, data = config.train, config.data
    steps = min(train.max_steps or _SMOKE_STEPS, _SMOKE_STEPS)
    records = min(data.max_records or 10**9, steps * train.batch_size * train.gradient_accumulation)
    compose = data.compose and data.compose.model_copy(
        update={
            "sources": [_at_most(source, records) for source in data.compose.sources],
            "train_path": _NOT_KEPT,
        }
    )
    return config.model_copy(
        update={
            "train": train.model_copy(update={**_WITHOUT, "max_steps": steps}),
            "data": data.model_copy(update={"max_records": records, "compose": compose}),
            "output_dir": None,
            "report_to": "none",
        }
    )


def _at_most(source: SourceOptions, records: int) -> SourceOptions:
    return source.model_copy(update={"max_records": min(source.max_records or records, records)})
