"""What a run will need, before it begins: parameters, memory by part, steps, and time from a few measured steps."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from adapterhub._files import temporary_folder
from adapterhub.base.auto_class import text_class
from adapterhub.base.fingerprint import weight_files
from adapterhub.base.linear_layers import LinearLayers
from adapterhub.base.loading import LOADING_ERRORS, training_dtype
from adapterhub.base.locating import locate_base_config
from adapterhub.base.stored_quantization import is_dequantized, stored_quantization
from adapterhub.dataset.records import Record, read_records
from adapterhub.dataset.stages import Progress
from adapterhub.errors import ConfigError
from adapterhub.training.config import FinetuneConfig, without_files
from adapterhub.training.losses import TrainingStep
from adapterhub.training.memory_estimate import EmptyBase, MemoryEstimate, estimate_memory
from adapterhub.training.preparing import with_composed_data
from adapterhub.training.tokenizing import IGNORE_INDEX, TokenizedExample
from adapterhub.training.trainer import train_adapter

_SAMPLING_S = 0.005


@dataclass(frozen=True)
class TrainingPlan:
    """What a run will need.

    Attributes:
        base: The base's name.
        parameters: Its number of weights.
        trainable: Number of LoRA weights.
        compute_dtype: Dtype of activations.
        device: Where it runs.
        batch_tokens: Tokens of the longest batch, padding included.
        memory: Estimated bytes by part, without those of Python and its libraries.
        records: Number of training records; None if the data is not there.
        steps: Optimiser steps of the run; None if it depends on data that is not there.
        measured_memory: Bytes that the measured steps added at their peak; None if none were measured.
        seconds_per_step: Mean over the whole run, from the measured steps; None if none were measured.
    """

    base: str
    parameters: int
    trainable: int
    compute_dtype: str
    device: str
    batch_tokens: int
    memory: MemoryEstimate
    records: int | None
    steps: int | None
    measured_memory: int | None
    seconds_per_step: float | None

    @property
    def seconds(self) -> float | None:
        """Time of all steps; None if it is not known."""
        known = self.steps is not None and self.seconds_per_step is not None
        return self.steps * self.seconds_per_step if known else None  # type: ignore[operator]


def plan_finetune(
    config: FinetuneConfig,
    *,
    measure: int = 3,
    progress: Callable[[TrainingStep], None] | None = None,
    composing: Progress | None = None,
) -> TrainingPlan:
    """Plans a run without making anything.

    A dataset of local files that is still to be composed is composed for the plan; one from the Hub is not downloaded.
    Where the base's weights and the data are on this machine, a few steps are trained and thrown away: the longest
    batch, and others from all of the data. Otherwise every conversation is taken to have `train.max_length` tokens. Of
    a hub id that is not here only `config.json` is downloaded.

    Args:
        config: The run.
        measure: Optimiser steps to measure; 0 loads no weights.
        progress: Called after every measured step.
        composing: As for `finetune`.

    Raises:
        ConfigError: The base cannot be found or read, another library than bitsandbytes quantised it, or it has no
            layer of a name in `lora.target_modules`.
        DatasetError: The data is there, and cannot be used.
        TrainingError: A measured step failed, for example for want of memory.
    """
    with _composed(config, composing) as ready:
        return _plan(ready, measure, progress)


@contextmanager
def _composed(config: FinetuneConfig, progress: Progress | None) -> Iterator[FinetuneConfig]:
    dataset = config.data.compose
    if dataset is None or not all(
        source.is_file and Path(source.path).is_file() for source in dataset.sources
    ):
        yield config
        return
    data = config.data.model_copy(update={"compose": without_files(dataset)})
    with with_composed_data(config.model_copy(update={"data": data}), progress) as ready:
        yield ready


def _plan(
    config: FinetuneConfig, measure: int, progress: Callable[[TrainingStep], None] | None
) -> TrainingPlan:
    folder = locate_base_config(config.base, revision=config.revision)
    if not is_dequantized(folder):
        stored_quantization(folder)  # refuses files that are not read
    device, dtype = training_dtype(config.device, config.compute_dtype)
    records = _records(config)
    measured = None
    if measure and records and _has_weights(folder):
        measured = _measure(config, records, measure, progress)
    base = _empty_base(folder, dtype)
    parameters = base.parameters
    most = config.train.max_length, config.train.max_length
    length, positions = measured.longest if measured and not config.train.packing else most
    trainable, memory = estimate_memory(
        config,
        base,
        dtype,
        device=device,
        batch=config.train.batch_size,
        length=length,
        answer_positions=positions if device == "cpu" else length,
    )
    return TrainingPlan(
        base=config.base,
        parameters=parameters,
        trainable=trainable,
        compute_dtype=str(dtype).removeprefix("torch."),
        device=device,
        batch_tokens=config.train.batch_size * length,
        memory=memory,
        records=len(records) if records else None,
        steps=_steps(config, _rows(config, records, measured)),
        measured_memory=measured.memory if measured else None,
        seconds_per_step=measured.seconds_per_step if measured else None,
    )


def _records(config: FinetuneConfig) -> list[Record] | None:
    if config.data.train is None or not config.data.train.is_file():
        return None
    records = read_records(config.data.train, max_records=config.data.max_records)
    held_out = min(round(len(records) * config.data.validation_share), len(records) - 1)
    return records[held_out:]  # as many as are trained on


def _has_weights(folder: Path) -> bool:
    try:
        return all(file.is_file() for file in weight_files(folder))
    except (OSError, ValueError, KeyError):
        return False


def _empty_base(folder: Path, dtype: torch.dtype) -> EmptyBase:
    from transformers import AutoConfig

    try:
        with torch.device("meta"):
            settings = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            model = text_class(settings).from_config(settings, dtype=dtype, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise ConfigError(
            f"The base's config.json describes no causal language model that transformers knows: {error}",
            hint="Point at the folder that transformers' save_pretrained wrote, or give a hub id.",
        ) from error
    model.requires_grad_(False)
    return EmptyBase(model, LinearLayers.of_model(model))


def _rows(config: FinetuneConfig, records: list[Record] | None, measured: _Measured | None) -> int | None:
    """Rows of the training data: its records, or with packing about what these fill."""
    if records is None or not config.train.packing:
        return None if records is None else len(records)
    return math.ceil(measured.tokens * len(records) / config.train.max_length) if measured else None


def _steps(config: FinetuneConfig, rows: int | None) -> int | None:
    train = config.train
    if train.max_steps is not None or rows is None:
        return train.max_steps
    batches = math.ceil(rows / train.batch_size)
    return math.ceil((train.epochs or 1) * max(1, math.ceil(batches / train.gradient_accumulation)))


@dataclass(frozen=True)
class _Measured:
    """What a few steps took: the tokens and answer positions of the longest batch, mean tokens of all records, bytes,
    and seconds a step."""

    longest: tuple[int, int]
    tokens: float
    memory: int
    seconds_per_step: float


def _measure(
    config: FinetuneConfig,
    records: list[Record],
    steps: int,
    progress: Callable[[TrainingStep], None] | None,
) -> _Measured:
    """Trains on a sample for a few steps, the longest records first."""
    train = config.train
    sample = _sample(records, train.batch_size, steps * train.batch_size * train.gradient_accumulation)
    times: list[float] = []

    def clock(step: TrainingStep) -> None:
        times.append(time.perf_counter())
        if progress:
            progress(step)

    with temporary_folder() as scratch:
        data, out = scratch / "sample.jsonl", scratch / "adapter"
        out.mkdir()
        lines = (record.model_dump_json(exclude={"line"}, exclude_none=True) for record in sample)
        data.write_text("\n".join(lines), encoding="utf-8")
        with _peak_memory() as memory:
            result = train_adapter(_short_run(config, data, steps), out, progress=clock)
    seconds = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1 / result.steps_per_second
    # The first step is left out: it is slower. The others are of average length only in the whole run.
    share = _characters(records) / len(records) / (_characters(sample) / len(sample))
    examples = result.train.examples
    return _Measured(
        longest=_longest(examples, train.batch_size),
        tokens=share * sum(len(example.input_ids) for example in examples) / len(examples),
        memory=memory(),
        seconds_per_step=seconds if train.packing else seconds * share,
    )


def _sample(records: list[Record], longest: int, count: int) -> list[Record]:
    """The longest records, and others spread over the data."""
    ordered = sorted(records, key=lambda record: len(record.conversation), reverse=True)
    rest = ordered[longest:]
    wanted = max(0, count - longest)
    spread = [rest[i * len(rest) // wanted] for i in range(wanted)] if rest else []
    return [*ordered[:longest], *spread]


def _characters(records: list[Record]) -> int:
    return sum(len(record.conversation) for record in records)


def _short_run(config: FinetuneConfig, data: Path, steps: int) -> FinetuneConfig:
    """The run for a few steps on other data, without what is done beside training."""
    train = config.train.model_copy(
        update={
            "epochs": None,
            "max_steps": steps,
            "warmup": 0.0,
            "eval_every": None,
            "early_stopping_patience": None,
            "load_best": False,
            "save_every": None,
            "resume": False,
        }
    )
    options = config.data.model_copy(
        update={"train": data, "validation": None, "validation_share": 0.0, "max_records": None}
    )
    update: dict[str, Any] = {"train": train, "data": options, "output_dir": None, "report_to": "none"}
    return config.model_copy(update=update)


def _longest(examples: list[TokenizedExample], count: int) -> tuple[int, int]:
    """Tokens of the longest example, and positions at which one of the longest has an answer token."""
    longest = sorted(examples, key=lambda example: len(example.input_ids), reverse=True)[:count]
    positions = {
        position
        for example in longest
        for position, label in enumerate(example.labels)
        if label != IGNORE_INDEX
    }
    return len(longest[0].input_ids), len(positions)


@contextmanager
def _peak_memory() -> Iterator[Callable[[], int]]:
    """Watches how much memory the block adds at its peak; yields what returns the bytes afterwards."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield lambda: torch.cuda.max_memory_allocated() - before
        return
    before = peak = _private_bytes()
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(_SAMPLING_S):
            peak = max(peak, _private_bytes())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: peak - before
    finally:
        ended.set()
        thread.join()


def _private_bytes() -> int:
    """Resident memory without mapped files, such as weights that are read from the page cache."""
    info = psutil.Process().memory_info()
    return int(info.rss - getattr(info, "shared", 0))
