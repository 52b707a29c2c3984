"""What comes before a run: its dataset is composed and split, or the run is shortened to try it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from adapterhub._files import scratch_folder
from adapterhub.dataset.composing import compose_dataset
from adapterhub.dataset.config import DatasetConfig
from adapterhub.dataset.records import Record, read_records
from adapterhub.dataset.splitting import hold_out
from adapterhub.dataset.stages import Progress
from adapterhub.errors import ConfigError, DatasetError
from adapterhub.training.config import FinetuneConfig, keeps_files, without_files

_SMOKE_STEPS = 20
_WITHOUT = dict.fromkeys(("epochs", "eval_every", "save_every", "early_stopping_patience")) | {
    "load_best": False,
    "resume": False,
}


@contextmanager
def with_composed_data(config: FinetuneConfig, progress: Progress | None = None) -> Iterator[FinetuneConfig]:
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
        if not keeps_files(dataset):
            val_path = dataset.val_path and scratch / "val.jsonl"
            dataset = dataset.model_copy(update={"train_path": scratch / "train.jsonl", "val_path": val_path})
        composed = compose_dataset(dataset, progress=progress)
        data = config.data.model_copy(
            update={
                "train": composed.train_path,
                "validation": config.data.validation or composed.val_path,
                "compose": None,
            }
        )
        yield config.model_copy(update={"data": data})


def split_records(
    config: FinetuneConfig, progress: Progress | None = None
) -> tuple[list[Record], list[Record]]:
    """The records to train on, and those that are held out.

    Args:
        config: A run whose dataset is composed.
        progress: Called now and then while near duplicates are searched for, with `data.validation_share`.

    Raises:
        ConfigError: The dataset is still to be composed.
        DatasetError: A file cannot be read or has invalid lines.
    """
    data = config.data
    if data.train is None:
        raise ConfigError("The dataset is still to be composed.", hint="Give data.train, or call finetune.")
    records = read_records(data.train, max_records=data.max_records)
    if data.validation is not None:
        return records, read_records(data.validation, max_records=data.max_records)
    held_out = hold_out(records, data.validation_share, seed=config.train.seed, progress=progress)
    return (
        [record for i, record in enumerate(records) if i not in held_out],
        [records[i] for i in sorted(held_out)],
    )


def shortened(config: FinetuneConfig) -> FinetuneConfig:
    """The run with at most twenty steps and the records for them, and without files."""
    train, data = config.train, config.data
    steps = min(train.max_steps or _SMOKE_STEPS, _SMOKE_STEPS)
    records = min(data.max_records or 10**9, steps * train.batch_size * train.gradient_accumulation)
    compose = data.compose and without_files(_at_most(data.compose, records))
    return config.model_copy(
        update={
            "train": train.model_copy(update={**_WITHOUT, "max_steps": steps}),
            "data": data.model_copy(update={"max_records": records, "compose": compose}),
            "output_dir": None,
            "report_to": "none",
        }
    )


def _at_most(dataset: DatasetConfig, records: int) -> DatasetConfig:
    sources = [
        source.model_copy(update={"max_records": min(source.max_records or records, records)})
        for source in dataset.sources
    ]
    return dataset.model_copy(update={"sources": sources})
