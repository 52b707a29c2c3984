"""Prepares requests for the engine, and makes a `Generation` of its completions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adapterhub._lazy import lazy_exports

if TYPE_CHECKING:
    from adapterhub.requests.generation import Generation, Usage
    from adapterhub.requests.options import BatchGenerationOptions, GenerationOptions
    from adapterhub.requests.preparing import RequestPreparer
    from adapterhub.requests.prompts import PromptStyle, choose_style, render
    from adapterhub.requests.streaming import AsyncGenerationStream, CompletionChunk, GenerationStream

__all__ = [
    "AsyncGenerationStream",
    "BatchGenerationOptions",
    "CompletionChunk",
    "Generation",
    "GenerationOptions",
    "GenerationStream",
    "PromptStyle",
    "RequestPreparer",
    "Usage",
    "choose_style",
    "render",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "AsyncGenerationStream": "adapterhub.requests.streaming",
        "BatchGenerationOptions": "adapterhub.requests.options",
        "CompletionChunk": "adapterhub.requests.streaming",
        "Generation": "adapterhub.requests.generation",
        "GenerationOptions": "adapterhub.requests.options",
        "GenerationStream": "adapterhub.requests.streaming",
        "PromptStyle": "adapterhub.requests.prompts",
        "RequestPreparer": "adapterhub.requests.preparing",
        "Usage": "adapterhub.requests.generation",
        "choose_style": "adapterhub.requests.prompts",
        "render": "adapterhub.requests.prompts",
    },
)
