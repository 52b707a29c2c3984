"""LoRA arithmetic: from an adapter's weights to slots, multi-adapter layers and blends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.lora.delta import LoraDelta, ModuleDelta
    from adapterhub.lora.loading import load_adapter_deltas, load_folder_deltas, read_deltas_without_base
    from adapterhub.lora.mapping import LoraMapping
    from adapterhub.lora.model_manager import LoraModelManager
    from adapterhub.lora.request import BlendedLoraRequest, LoraRequest, StoredLoraRequest
    from adapterhub.lora.saving import save_adapter

__all__ = [
    "BlendedLoraRequest",
    "LoraDelta",
    "LoraMapping",
    "LoraModelManager",
    "LoraRequest",
    "ModuleDelta",
    "StoredLoraRequest",
    "load_adapter_deltas",
    "load_folder_deltas",
    "read_deltas_without_base",
    "save_adapter",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "BlendedLoraRequest": "adapterhub.lora.request",
        "LoraDelta": "adapterhub.lora.delta",
        "LoraMapping": "adapterhub.lora.mapping",
        "LoraModelManager": "adapterhub.lora.model_manager",
        "LoraRequest": "adapterhub.lora.request",
        "ModuleDelta": "adapterhub.lora.delta",
        "StoredLoraRequest": "adapterhub.lora.request",
        "load_adapter_deltas": "adapterhub.lora.loading",
        "load_folder_deltas": "adapterhub.lora.loading",
        "read_deltas_without_base": "adapterhub.lora.loading",
        "save_adapter": "adapterhub.lora.saving",
    },
)
