"""Blends several adapters into one, weighted: cat (exact), svd, linear, ties, dare_ties."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.lora.blending.methods import BLEND_METHODS, BlendMethod, BlendSettings, blend_deltas
    from adapterhub.lora.blending.registering import blend_adapters
    from adapterhub.lora.blending.resolving import (
        Blend,
        ResolvedAdapter,
        SingleAdapter,
        parse_weights,
        resolve_adapter,
    )

__all__ = [
    "BLEND_METHODS",
    "Blend",
    "BlendMethod",
    "BlendSettings",
    "ResolvedAdapter",
    "SingleAdapter",
    "blend_adapters",
    "blend_deltas",
    "parse_weights",
    "resolve_adapter",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "BLEND_METHODS": "adapterhub.lora.blending.methods",
        "Blend": "adapterhub.lora.blending.resolving",
        "BlendMethod": "adapterhub.lora.blending.methods",
        "BlendSettings": "adapterhub.lora.blending.methods",
        "ResolvedAdapter": "adapterhub.lora.blending.resolving",
        "SingleAdapter": "adapterhub.lora.blending.resolving",
        "blend_adapters": "adapterhub.lora.blending.registering",
        "blend_deltas": "adapterhub.lora.blending.methods",
        "parse_weights": "adapterhub.lora.blending.resolving",
        "resolve_adapter": "adapterhub.lora.blending.resolving",
    },
)
