"""Engines: they complete prompts with one base and any of its adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.engine.batching import BatchingEngine, adapter_loader
    from adapterhub.engine.echo import EchoEngine
    from adapterhub.engine.histogram import Histogram
    from adapterhub.engine.interface import (
        Completion,
        Engine,
        FinishReason,
        Request,
        Timings,
        TokenLogprob,
        TokenOutput,
        TokenStream,
    )
    from adapterhub.engine.output_format import OutputFormat
    from adapterhub.engine.runner import EngineBase, Runner, ScheduledSequence
    from adapterhub.engine.runners.packed import PackedRunner
    from adapterhub.engine.sampling_params import SamplingParams
    from adapterhub.engine.scheduling.scheduler import AdapterLoader
    from adapterhub.engine.stats import AdapterStats, EngineStats

__all__ = [
    "AdapterLoader",
    "AdapterStats",
    "BatchingEngine",
    "Completion",
    "EchoEngine",
    "Engine",
    "EngineBase",
    "EngineStats",
    "FinishReason",
    "Histogram",
    "OutputFormat",
    "PackedRunner",
    "Request",
    "Runner",
    "SamplingParams",
    "ScheduledSequence",
    "Timings",
    "TokenLogprob",
    "TokenOutput",
    "TokenStream",
    "adapter_loader",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "AdapterLoader": "adapterhub.engine.scheduling.scheduler",
        "AdapterStats": "adapterhub.engine.stats",
        "BatchingEngine": "adapterhub.engine.batching",
        "Completion": "adapterhub.engine.interface",
        "EchoEngine": "adapterhub.engine.echo",
        "Engine": "adapterhub.engine.interface",
        "EngineBase": "adapterhub.engine.runner",
        "EngineStats": "adapterhub.engine.stats",
        "FinishReason": "adapterhub.engine.interface",
        "Histogram": "adapterhub.engine.histogram",
        "PackedRunner": "adapterhub.engine.runners.packed",
        "OutputFormat": "adapterhub.engine.output_format",
        "Request": "adapterhub.engine.interface",
        "Runner": "adapterhub.engine.runner",
        "SamplingParams": "adapterhub.engine.sampling_params",
        "ScheduledSequence": "adapterhub.engine.runner",
        "Timings": "adapterhub.engine.interface",
        "TokenLogprob": "adapterhub.engine.interface",
        "TokenOutput": "adapterhub.engine.interface",
        "TokenStream": "adapterhub.engine.interface",
        "adapter_loader": "adapterhub.engine.batching",
    },
)
