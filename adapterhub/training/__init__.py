"""Fine-tuning: from a configuration and a dataset to a registered adapter.

`finetune` needs the `train` extra (trl, datasets): `pip install "adapterhub[train]"`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.training.config import FinetuneConfig
    from adapterhub.training.finetuning import finetune, smoke_test
    from adapterhub.training.losses import TrainingStep
    from adapterhub.training.masked_example import MaskedExample
    from adapterhub.training.memory_estimate import MemoryEstimate
    from adapterhub.training.output_folder import FinetuneResult
    from adapterhub.training.planning import TrainingPlan, plan_finetune
    from adapterhub.training.trainer import RunStart, train_adapter
    from adapterhub.training.training_result import TrainingResult

__all__ = [
    "FinetuneConfig",
    "FinetuneResult",
    "MaskedExample",
    "MemoryEstimate",
    "RunStart",
    "TrainingPlan",
    "TrainingResult",
    "TrainingStep",
    "finetune",
    "plan_finetune",
    "smoke_test",
    "train_adapter",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "FinetuneConfig": "adapterhub.training.config",
        "FinetuneResult": "adapterhub.training.output_folder",
        "MaskedExample": "adapterhub.training.masked_example",
        "MemoryEstimate": "adapterhub.training.memory_estimate",
        "RunStart": "adapterhub.training.trainer",
        "TrainingPlan": "adapterhub.training.planning",
        "TrainingResult": "adapterhub.training.training_result",
        "TrainingStep": "adapterhub.training.losses",
        "finetune": "adapterhub.training.finetuning",
        "plan_finetune": "adapterhub.training.planning",
        "smoke_test": "adapterhub.training.finetuning",
        "train_adapter": "adapterhub.training.trainer",
    },
)
