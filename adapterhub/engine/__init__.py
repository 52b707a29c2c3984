"""What generates: one base and any of its adapters, behind one interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.engine.batching import BatchingEngine
    from adapterhub.engine.echo import EchoEngine
    from adapterhub.engine.interface import (
        Completion,
        Engine,
        FinishReason,
        Request,
        TokenLogprob,
        TokenOutput,
    )
    from adapterhub.engine.output_format import OutputFormat
    from adapterhub.engine.sampling_params import SamplingParams
    from adapterhub.engine.stats import EngineStats

__all__ = [
    "BatchingEngine",
    "Completion",
    "EchoEngine",
    "Engine",
    "EngineStats",
    "FinishReason",
    "OutputFormat",
    "Request",
    "SamplingParams",
    "TokenLogprob",
    "TokenOutput",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "BatchingEngine": "adapterhub.engine.batching",
        "Completion": "adapterhub.engine.interface",
        "EchoEngine": "adapterhub.engine.echo",
        "Engine": "adapterhub.engine.interface",
        "EngineStats": "adapterhub.engine.stats",
        "FinishReason": "adapterhub.engine.interface",
        "OutputFormat": "adapterhub.engine.output_format",
        "Request": "adapterhub.engine.interface",
        "SamplingParams": "adapterhub.engine.sampling_params",
        "TokenLogprob": "adapterhub.engine.interface",
        "TokenOutput": "adapterhub.engine.interface",
    },
)
