"""adapterhub: one 4-bit base model, many named LoRA adapters.

Names are imported when first used (PEP 562), so `import adapterhub` loads neither torch nor transformers.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.base import load_base
    from adapterhub.config import EngineLimits, HubConfig
    from adapterhub.engine import (
        BatchingEngine,
        Completion,
        EchoEngine,
        Engine,
        EngineStats,
        OutputFormat,
        SamplingParams,
    )
    from adapterhub.errors import (
        AdapterDisabledError,
        AdapterExistsError,
        AdapterHubError,
        AdapterIncompatibleError,
        AdapterInvalidError,
        AdapterNotFoundError,
        CapacityError,
        ConfigError,
        DatasetError,
        DeadlineError,
        EngineClosedError,
        EngineError,
        ExportError,
        GenerationError,
        InvalidRequestError,
        RegistryError,
        RegistryLockedError,
        RegistryUnavailableError,
        RequestTooLongError,
        RoutingError,
        ToolError,
        TrainingError,
    )
    from adapterhub.hub import AdapterHub
    from adapterhub.registry import AdapterCard, AdapterRegistry
    from adapterhub.requests import (
        AsyncGenerationStream,
        BatchGenerationOptions,
        CompletionChunk,
        Generation,
        GenerationOptions,
        GenerationStream,
        Usage,
    )
    from adapterhub.routing import (
        AdapterRouter,
        Policy,
        RouteDecision,
        RouteFilter,
    )

__version__ = "0.1.0"

_EXPORTS = {
    "AdapterCard": "adapterhub.registry",
    "AdapterDisabledError": "adapterhub.errors",
    "AdapterExistsError": "adapterhub.errors",
    "AdapterHub": "adapterhub.hub",
    "AdapterHubError": "adapterhub.errors",
    "AdapterIncompatibleError": "adapterhub.errors",
    "AdapterInvalidError": "adapterhub.errors",
    "AdapterNotFoundError": "adapterhub.errors",
    "AdapterRegistry": "adapterhub.registry",
    "AdapterRouter": "adapterhub.routing",
    "AsyncGenerationStream": "adapterhub.requests",
    "BatchGenerationOptions": "adapterhub.requests",
    "BatchingEngine": "adapterhub.engine",
    "CapacityError": "adapterhub.errors",
    "Completion": "adapterhub.engine",
    "CompletionChunk": "adapterhub.requests",
    "ConfigError": "adapterhub.errors",
    "DatasetError": "adapterhub.errors",
    "DeadlineError": "adapterhub.errors",
    "EchoEngine": "adapterhub.engine",
    "Engine": "adapterhub.engine",
    "EngineClosedError": "adapterhub.errors",
    "EngineError": "adapterhub.errors",
    "EngineLimits": "adapterhub.config",
    "EngineStats": "adapterhub.engine",
    "ExportError": "adapterhub.errors",
    "Generation": "adapterhub.requests",
    "GenerationError": "adapterhub.errors",
    "GenerationOptions": "adapterhub.requests",
    "GenerationStream": "adapterhub.requests",
    "HubConfig": "adapterhub.config",
    "InvalidRequestError": "adapterhub.errors",
    "OutputFormat": "adapterhub.engine",
    "Policy": "adapterhub.routing",
    "RegistryError": "adapterhub.errors",
    "RegistryLockedError": "adapterhub.errors",
    "RegistryUnavailableError": "adapterhub.errors",
    "RequestTooLongError": "adapterhub.errors",
    "RouteDecision": "adapterhub.routing",
    "RouteFilter": "adapterhub.routing",
    "RoutingError": "adapterhub.errors",
    "SamplingParams": "adapterhub.engine",
    "ToolError": "adapterhub.errors",
    "TrainingError": "adapterhub.errors",
    "Usage": "adapterhub.requests",
    "load_base": "adapterhub.base",
}

__all__ = [
    "AdapterCard",
    "AdapterDisabledError",
    "AdapterExistsError",
    "AdapterHub",
    "AdapterHubError",
    "AdapterIncompatibleError",
    "AdapterInvalidError",
    "AdapterNotFoundError",
    "AdapterRegistry",
    "AdapterRouter",
    "AsyncGenerationStream",
    "BatchGenerationOptions",
    "BatchingEngine",
    "CapacityError",
    "Completion",
    "CompletionChunk",
    "ConfigError",
    "DatasetError",
    "DeadlineError",
    "EchoEngine",
    "Engine",
    "EngineClosedError",
    "EngineError",
    "EngineLimits",
    "EngineStats",
    "ExportError",
    "Generation",
    "GenerationError",
    "GenerationOptions",
    "GenerationStream",
    "HubConfig",
    "InvalidRequestError",
    "OutputFormat",
    "Policy",
    "RegistryError",
    "RegistryLockedError",
    "RegistryUnavailableError",
    "RequestTooLongError",
    "RouteDecision",
    "RouteFilter",
    "RoutingError",
    "SamplingParams",
    "ToolError",
    "TrainingError",
    "Usage",
    "__version__",
    "load_base",
]

logging.getLogger(__name__).addHandler(logging.NullHandler())

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
