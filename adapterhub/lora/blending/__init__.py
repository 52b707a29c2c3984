"""Several adapters into one, weighted: exact, svd, linear, ties, dare_ties."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.lora.blending.methods import BlendSettings, blend_deltas
    from adapterhub.lora.blending.references import Blend, parse_weights
    from adapterhub.lora.blending.registering import blend_adapters

__all__ = [
    "Blend",
    "BlendSettings",
    "blend_adapters",
    "blend_deltas",
    "parse_weights",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "Blend": "adapterhub.lora.blending.references",
        "BlendSettings": "adapterhub.lora.blending.methods",
        "blend_adapters": "adapterhub.lora.blending.registering",
        "blend_deltas": "adapterhub.lora.blending.methods",
        "parse_weights": "adapterhub.lora.blending.references",
    },
)
