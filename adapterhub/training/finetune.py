"""The verb `finetune`: train an adapter, then register it with what its card should say."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.files import sha256_file
from adapterhub.registry.cards import AdapterCard, Evaluation, Lineage
from adapterhub.training.config import FinetuneConfig
from adapterhub.training.trainer import Progress, TrainingResult, train_adapter

if TYPE_CHECKING:
    from adapterhub.registry.store import AdapterRegistry


def finetune(
    config: FinetuneConfig,
    registry: AdapterRegistry,
    *,
    progress: Callable[[Progress], None] | None = None,
) -> AdapterCard:
    """Trains an adapter and registers it, all or nothing.

    Args:
        config: The run.
        registry: Where the adapter goes; a name that exists gets its next version.
        progress: Called after every step.

    Returns:
        The adapter's card, with its base, data and losses on it.

    Raises:
        ConfigError: The base cannot be loaded.
        DatasetError: The data cannot be used.
        TrainingError: The loss is no longer a number, a LoRA weight did not move, or memory ran out.
        RegistryError: The adapter could not be stored.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = train_adapter(config, Path(folder), progress=progress)
        return registry.register(
            Path(folder), config.name, base=result.base.folder, **_card_fields(config, result)
        )


def _card_fields(config: FinetuneConfig, result: TrainingResult) -> dict[str, Any]:
    losses = [("train", result.loss), ("validation", result.eval_loss)]
    return {
        **dict(config.card),
        "datasets": tuple(_dataset_id(path) for path in (config.data.train, config.data.validation) if path),
        "evaluation": tuple(
            Evaluation(
                task_type="text-generation",
                dataset_name=config.data.train.name,
                dataset_split=split,
                metric_type="loss",
                metric_name="cross entropy of the answer's tokens, nats",
                metric_value=round(loss, 4),
            )
            for split, loss in losses
            if loss is not None
        ),
        "lineage": Lineage(method="finetune"),
    }


def _dataset_id(path: Path) -> str:
    return f"{path.name} sha256:{sha256_file(path)}"
