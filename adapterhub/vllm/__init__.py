"""vLLM as the engine: one server or several, behind the `Engine` interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.vllm.base import ServedBase
    from adapterhub.vllm.client import Timeouts
    from adapterhub.vllm.engine import VLLMEngine
    from adapterhub.vllm.fleet import FleetLimits
    from adapterhub.vllm.replica import ReplicaState

__all__ = ["FleetLimits", "ReplicaState", "ServedBase", "Timeouts", "VLLMEngine"]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "FleetLimits": "adapterhub.vllm.fleet",
        "ReplicaState": "adapterhub.vllm.replica",
        "ServedBase": "adapterhub.vllm.base",
        "Timeouts": "adapterhub.vllm.client",
        "VLLMEngine": "adapterhub.vllm.engine",
    },
)
