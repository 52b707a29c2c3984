"""adapterhub: one 4-bit base model, many named LoRA adapters.

Names are imported when first used (PEP 562), so `import adapterhub` loads neither torch nor transformers.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.base.loading import load_base
    from adapterhub.config import HubConfig
    from adapterhub.engine.echo import EchoEngine
    from adapterhub.engine.interface import Engine
    from adapterhub.engine.sampling_params import SamplingParams
    from adapterhub.errors import (
        AdapterHubError,
        AdapterIncompatibleError,
        AdapterNotFoundError,
        CapacityError,
    )
    from adapterhub.hub import AdapterHub
    from adapterhub.registry import AdapterCard, AdapterRegistry
    from adapterhub.requests.generation import Generation
    from adapterhub.routing.decision import RouteDecision
    from adapterhub.routing.router import AdapterRouter

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
    "Generation": "adapterhub.requests.generation",
    "HubConfig": "adapterhub.config",
    "RouteDecision": "adapterhub.routing.decision",
    "SamplingParams": "adapterhub.engine.sampling_params",
    "load_base": "adapterhub.base.loading",
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


__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
