"""Fine-tuning: from a configuration and a dataset to a registered adapter.

`finetune` needs the `train` extra (trl, datasets): `pip install "adapterhub[train]"`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.training.config import FinetuneConfig
    from adapterhub.training.finetuning import finetune

__all__ = ["FinetuneConfig", "finetune"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "FinetuneConfig": "adapterhub.training.config",
        "finetune": "adapterhub.training.finetuning",
    },
)
