"""Before and after a training run: the base is measured first, the new adapter beside it afterwards."""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.dataset.records import Record, read_records
from adapterhub.evaluation.comparing import Progress, compare, measure_base
from adapterhub.evaluation.comparison import Comparison, ComparisonSettings
from adapterhub.evaluation.data import EvaluationData
from adapterhub.evaluation.metrics import Scorer

if TYPE_CHECKING:
    from adapterhub.base import Base
    from adapterhub.registry import AdapterCard, AdapterRegistry
    from adapterhub.training import FinetuneConfig


@dataclass(frozen=True)
class ComparedTraining:
    """The comparison around a training run: `measure_base`, then train, then `compare`.

    What is wrong with the data is found before the training. The base is loaded anew for each measurement, stored as in
    the run, so that no two models are in memory.

    Attributes:
        config: The run.
        data: Held-out data, prompts, or both.
        baselines: The folder that keeps the base's losses and answers in between.
        settings: How base and adapter are measured.
        scorer: As for `compare`.
    """

    config: FinetuneConfig
    data: EvaluationData
    baselines: Path
    settings: ComparisonSettings = field(default_factory=ComparisonSettings)
    scorer: Scorer | None = None

    def measure_base(self, progress: Progress | None = None) -> None:
        """Measures the base with the prompt profile of the adapter to be; arguments and errors as in `compare`."""
        measure_base(
            self._load_base(),
            self.config.card.prompt,
            self.data,
            settings=self.settings,
            baselines=self.baselines,
            progress=progress,
        )
        gc.collect()  # the base, before the training loads it again

    def compare(
        self, registry: AdapterRegistry, card: AdapterCard, progress: Progress | None = None
    ) -> Comparison:
        """Compares the trained adapter with the base.

        Args:
            registry: Where the adapter is.
            card: That of the adapter.
            progress: As for `compare`.

        Raises:
            AdapterHubError: As `compare`.
        """
        comparison = compare(
            self._load_base(),
            registry,
            card.ref,
            self.data,
            settings=self.settings,
            scorer=self.scorer,
            baselines=self.baselines,
            progress=progress,
        )
        warnings = self._warnings()
        return replace(comparison, warnings=(*comparison.warnings, *warnings)) if warnings else comparison

    def _load_base(self) -> Base:
        from adapterhub.base.loading import load_base

        config = self.config
        return load_base(
            config.base,
            quantization=config.quantization,
            compute_dtype=config.compute_dtype,
            device=config.device,
            revision=config.revision,
        )

    def _warnings(self) -> list[str]:
        data = self.config.data
        path = data.train or (data.compose and data.compose.train_path)
        if path is None or not path.is_file():
            return [
                "the training data was composed and not kept, so held-out records were not looked for in it"
            ]
        trained_on = {_conversation(record) for record in read_records(path)}
        repeated = sum(_conversation(record) in trained_on for record in self.data.records)
        if not repeated:
            return []
        return [f"{repeated:,} of {len(self.data.records):,} held-out records are training records too"]


def _conversation(record: Record) -> str:
    return json.dumps([message.model_dump(exclude_none=True) for message in record.messages], sort_keys=True)
