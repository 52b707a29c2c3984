"""vLLM as the engine: one server or several, behind the `Engine` interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.vllm.client import Timeouts

__all__ = ["Timeouts"]

__getattr__, __dir__ = lazy_exports(__name__, {"Timeouts": "adapterhub.vllm.client"})
