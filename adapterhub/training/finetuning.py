"""Fine-tuning: trains an adapter and registers it with its card."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from adapterhub._files import sha256_file
from adapterhub.base.locating import locate_base
from adapterhub.registry.cards import AdapterCard, CardFields, Evaluation, Lineage, PromptProfile
from adapterhub.registry.prompt_files import prompt_profile_of
from adapterhub.training.config import FinetuneConfig
from adapterhub.training.trainer import TrainingResult, TrainingStep, train_adapter

if TYPE_CHECKING:
    from adapterhub.registry.store import AdapterRegistry


def finetune(
    config: FinetuneConfig,
    registry: AdapterRegistry,
    *,
    progress: Callable[[TrainingStep], None] | None = None,
) -> AdapterCard:
    """Trains an adapter and registers it; after an error nothing is registered.

    Args:
        config: The run.
        registry: Stores the adapter; an existing name gets its next version.
        progress: Called after every step.

    Returns:
        The adapter's card, with base, datasets and losses.

    Raises:
        ConfigError: The base cannot be loaded.
        DatasetError: The data cannot be used.
        TrainingError: The loss became NaN or infinite, a lora_B did not change, or memory ran out.
        AdapterInvalidError: The initial adapter's files are damaged.
        AdapterIncompatibleError: The initial adapter is of a kind that cannot be trained.
        RegistryError: The adapter could not be stored.
    """
    config = _with_initial_profile(config)
    with tempfile.TemporaryDirectory() as folder:
        result = train_adapter(config, Path(folder), progress=progress)
        return registry.register(
            config.name,
            folder,
            base=config.base,
            quantization=config.quantization,
            **_card_fields(config, result),
        )


def _with_initial_profile(config: FinetuneConfig) -> FinetuneConfig:
    """The run with the prompt profile of the adapter that it continues, unless it sets one itself."""
    if config.initial_adapter is None or "prompt" in config.card.model_fields_set:
        return config
    profile = prompt_profile_of(config.initial_adapter, locate_base(config.base))
    card = config.card.model_copy(update={"prompt": profile})  # counts as set from then on
    return config.model_copy(update={"card": card})


def _card_fields(config: FinetuneConfig, result: TrainingResult) -> CardFields:
    data = config.data
    fields: CardFields = {
        "datasets": [_dataset_id(path) for path in (data.train, data.validation) if path],
        "evaluation": [_evaluation(config, result.eval_loss)] if result.eval_loss is not None else [],
        "lineage": Lineage(method="finetune", settings=_settings(config, result)),
    }
    if result.stop:
        fields["prompt"] = _with_stop(config.card.prompt, result.stop)
    return {**config.card.fields(), **fields}


def _with_stop(profile: PromptProfile, stop: tuple[str, ...]) -> PromptProfile:
    new = (token for token in stop if token not in profile.stop)
    return profile.model_copy(update={"stop": (*profile.stop, *new)})


def _settings(config: FinetuneConfig, result: TrainingResult) -> dict[str, JsonValue]:
    return {
        **config.train.model_dump(mode="json", exclude_none=True),
        **({"initial_adapter": result.initial_adapter} if result.initial_adapter else {}),
        "lora_dropout": config.lora.dropout,
        "compute_dtype": str(result.base.compute_dtype).removeprefix("torch."),
        "prompt": str(result.style),
        "records": len(result.train.examples),
        "records_truncated": result.train.truncated,
        "records_dropped": result.train.dropped,
        "steps": result.steps,
        "loss": round(result.loss, 4),
    }


def _evaluation(config: FinetuneConfig, loss: float) -> Evaluation:
    return Evaluation(
        task_type="text-generation",
        dataset_name=(config.data.validation or config.data.train).name,
        dataset_split="validation",
        metric_type="loss",
        metric_name="cross entropy of the answers' tokens, nats, mean over batches",
        metric_value=round(loss, 4),
    )


def _dataset_id(path: Path) -> str:
    return f"{path.name} sha256:{sha256_file(path)}"
