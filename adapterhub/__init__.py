"""adapterhub: one 4-bit base model, many named LoRA adapters.

Names are imported when first used (PEP 562), so `import adapterhub` loads neither torch nor transformers.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapterhub.config import HubConfig
    from adapterhub.engine.echo import EchoEngine
    from adapterhub.engine.interface import Engine
    from adapterhub.errors import (
        AdapterHubError,
        AdapterIncompatibleError,
        AdapterNotFoundError,
        CapacityError,
    )
    from adapterhub.generation import Generation
    from adapterhub.hub import AdapterHub
    from adapterhub.models import load_base
    from adapterhub.registry import AdapterCard, AdapterRegistry
    from adapterhub.routing.decision import RouteDecision
    from adapterhub.routing.router import AdapterRouter
    from adapterhub.sampling import SamplingParams

__version__ = "0.1.0"

_EXPORTS = {
    "AdapterCard": "adapterhub.registry",
    "AdapterHub": "adapterhub.hub",
    "AdapterHubError": "adapterhub.errors",
    "AdapterIncompatibleError": "adapterhub.errors",
    "AdapterNotFoundError": "adapterhub.errors",
    "AdapterRegistry": "adapterhub.registry",
    "AdapterRouter": "adapterhub.routing.router",
    "CapacityError": "adapterhub.errors",
    "EchoEngine": "adapterhub.engine.echo",
    "Engine": "adapterhub.engine.interface",
    "Generation": "adapterhub.generation",
    "HubConfig": "adapterhub.config",
    "RouteDecision": "adapterhub.routing.decision",
    "SamplingParams": "adapterhub.sampling",
    "load_base": "adapterhub.models",
}

__all__ = [
    "AdapterCard",
    "AdapterHub",
    "AdapterHubError",
    "AdapterIncompatibleError",
    "AdapterNotFoundError",
    "AdapterRegistry",
    "AdapterRouter",
    "CapacityError",
    "EchoEngine",
    "Engine",
    "Generation",
    "HubConfig",
    "RouteDecision",
    "SamplingParams",
    "__version__",
    "load_base",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return __all__
