"""Which back end runs an adapter: in-process, llama.cpp, vLLM or SGLang; why not, and what makes it fit."""

from __future__ import annotations

from adapterhub.capabilities.checking import (
    Capability,
    Conversion,
    Obstacle,
    capabilities_of,
    capability,
    check_adapter,
)
from adapterhub.capabilities.features import AdapterFeatures, Feature
from adapterhub.capabilities.matrix import (
    HIGHEST_RANK,
    MATRIX,
    VLLM_MAX_LORA_RANKS,
    Backend,
    Remedy,
    Support,
)

__all__ = [
    "HIGHEST_RANK",
    "MATRIX",
    "VLLM_MAX_LORA_RANKS",
    "AdapterFeatures",
    "Backend",
    "Capability",
    "Conversion",
    "Feature",
    "Obstacle",
    "Remedy",
    "Support",
    "capabilities_of",
    "capability",
    "check_adapter",
]
