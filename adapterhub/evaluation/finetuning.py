"""Before and after a training run: the base is measured first, the new adapter beside it afterwards."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub._files import sha256_file
from adapterhub.dataset.records import Record
from adapterhub.errors import DatasetError
from adapterhub.evaluation.comparing import Progress, compare, known_files, measure_base
from adapterhub.evaluation.comparison import Comparison, ComparisonSettings
from adapterhub.evaluation.data import EvaluationData, EvaluationFile, data_of_records
from adapterhub.evaluation.metrics import Scorer
from adapterhub.training.preparing import split_records

if TYPE_CHECKING:
    from adapterhub.base import Base
    from adapterhub.registry import AdapterCard, AdapterRegistry
    from adapterhub.training import FinetuneConfig


class ComparedTraining:
    """The comparison around a training run: `measure_base`, then train, then `compare`.

    What is wrong with the data is found before the training. The base is loaded anew for each measurement, stored as in
    the run, so that no two models are in memory.

    Args:
        baselines: The folder that keeps the base's losses and answers in between.
        data: Held-out data, prompts, or both; None takes the run's own validation records.
        prompts: Prompts to answer in place of those of the validation records, from `read_data`.
        settings: How base and adapter are measured; the defaults if not given.
        scorer: As for `compare`.
    """

    def __init__(
        self,
        baselines: Path,
        data: EvaluationData | None = None,
        *,
        prompts: EvaluationData | None = None,
        settings: ComparisonSettings | None = None,
        scorer: Scorer | None = None,
    ) -> None:
        self._baselines = baselines
        self._data, self._prompts = data, prompts
        self._is_own = data is None
        self._settings = settings or ComparisonSettings()
        self._scorer = scorer
        self._repeated = 0

    def measure_base(self, config: FinetuneConfig, progress: Progress | None = None) -> None:
        """Measures the base with the prompt profile of the adapter to be; `finetune` calls it as `prepared`.

        Args:
            config: The run, its dataset composed.
            progress: As for `compare`.

        Raises:
            DatasetError: The run has no validation records, and none were given; or as `compare`.
            AdapterHubError: As `compare`.
        """

        def searching(stage: str, done: int, total: int | None) -> None:
            if progress:
                progress(done, total or 0, stage)

        trained_on, held_out = split_records(config, searching)
        if self._data is None:
            self._data = _own_data(config, held_out, self._prompts)
        conversations = set(map(_conversation, trained_on))
        self._repeated = sum(_conversation(record) in conversations for record in self._data.records)
        measure_base(
            _load_base(config),
            config.card.prompt,
            self._data,
            settings=self._settings,
            baselines=self._baselines,
            progress=progress,
        )
        gc.collect()  # the base, before the training loads it again

    def compare(
        self,
        config: FinetuneConfig,
        registry: AdapterRegistry,
        card: AdapterCard,
        progress: Progress | None = None,
    ) -> Comparison:
        """Compares the trained adapter with the base, after `measure_base` and the training.

        Args:
            config: The run.
            registry: Where the adapter is.
            card: That of the adapter.
            progress: As for `compare`.

        Raises:
            AdapterHubError: As `compare`.
        """
        if self._data is None:
            raise DatasetError("The base was not measured before the training.", hint="Call measure_base.")
        comparison = compare(
            _load_base(config),
            registry,
            card.ref,
            self._data,
            settings=self._settings,
            scorer=self._scorer,
            baselines=self._baselines,
            progress=progress,
        )
        return replace(comparison, warnings=tuple(self._warnings(config, card, self._data)))

    def _warnings(self, config: FinetuneConfig, card: AdapterCard, data: EvaluationData) -> Iterator[str]:
        """What may make the figures too good."""
        if self._is_own:  # the file is on the card, but these records of it were held out
            yield from known_files([card], data.files[1:])
            if config.train.load_best or config.train.early_stopping_patience:
                yield "the run chose its weights by these validation records, so its figures may be too good"
        else:
            yield from known_files([card], data.files)
        if self._repeated:
            total = len(data.records)
            yield f"{self._repeated:,} of {total:,} held-out records are training records too"


def _own_data(
    config: FinetuneConfig, held_out: list[Record], prompts: EvaluationData | None
) -> EvaluationData:
    data = config.data
    path = data.validation or data.train
    if not held_out or path is None:
        raise DatasetError(
            "The run has no validation records to compare on.",
            hint="Set data.validation or data.validation_share, or name a file of held-out data.",
        )
    suffix = "" if data.validation else f", {data.validation_share:.0%} held out"
    own = data_of_records(held_out, EvaluationFile(f"{path.name}{suffix}", sha256_file(path)))
    return replace(own, prompts=prompts.prompts, files=(*own.files, *prompts.files)) if prompts else own


def _load_base(config: FinetuneConfig) -> Base:
    from adapterhub.base.loading import load_base

    return load_base(
        config.base,
        quantization=config.quantization,
        compute_dtype=config.compute_dtype,
        device=config.device,
        revision=config.revision,
    )


def _conversation(record: Record) -> str:
    return json.dumps([message.model_dump(exclude_none=True) for message in record.messages], sort_keys=True)
