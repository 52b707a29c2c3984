"""LoRA arithmetic: from an adapter's weights to slots, multi-adapter layers and blends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.lora.delta import LoraDelta
    from adapterhub.lora.loading import load_deltas, read_deltas
    from adapterhub.lora.mapping import LoraMapping
    from adapterhub.lora.model_manager import LoraModelManager
    from adapterhub.lora.request import LoraRequest

__all__ = [
    "LoraDelta",
    "LoraMapping",
    "LoraModelManager",
    "LoraRequest",
    "load_deltas",
    "read_deltas",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "LoraDelta": "adapterhub.lora.delta",
        "LoraMapping": "adapterhub.lora.mapping",
        "LoraModelManager": "adapterhub.lora.model_manager",
        "LoraRequest": "adapterhub.lora.request",
        "load_deltas": "adapterhub.lora.loading",
        "read_deltas": "adapterhub.lora.loading",
    },
)
