"""Compares a merged model with the adapter that it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapterhub.engine.interface import Engine
from adapterhub.errors import InvalidRequestError
from adapterhub.registry import AdapterRegistry
from adapterhub.requests.options import RequestOptions
from adapterhub.requests.preparing import Prompt, RequestPreparer


def merged_agreement(
    engine: Engine,
    registry: AdapterRegistry,
    adapter: str,
    merged: str | Path,
    prompts: Sequence[Prompt],
    *,
    tools: Sequence[Sequence[Mapping[str, Any]] | None] | None = None,
    max_tokens: int = 64,
) -> float:
    """Measures how often a merged model answers exactly as its adapter does.

    Both answer greedily: the engine's base with the adapter, and the merged weights as they are stored.

    Args:
        engine: Serves the adapter.
        registry: Where the adapter is.
        adapter: Its reference.
        merged: The folder that `merge_adapter` wrote.
        prompts: The prompts for both.
        tools: One entry for each prompt, as `tools` of `AdapterHub.generate`; none if not given.
        max_tokens: Maximum number of tokens of each answer.

    Returns:
        The share of prompts, 0 to 1, with equal answers.

    Raises:
        InvalidRequestError: There are no prompts, or not as many `tools` as prompts.
        ConfigError: The folder holds no model.
    """
    from adapterhub.base.loading import load_base
    from adapterhub.engine.batching import BatchingEngine

    if not prompts:
        raise InvalidRequestError("There are no prompts to compare the models by.", hint="Give some.")
    tools_of_each = [None] * len(prompts) if tools is None else tools
    if len(tools_of_each) != len(prompts):
        raise InvalidRequestError(
            f"There are {len(prompts)} prompts and {len(tools_of_each)} lists of tools.",
            hint="Give one each.",
        )
    preparer, greedy = RequestPreparer(registry, engine), {"max_tokens": max_tokens, "temperature": 0.0}
    requests = [
        preparer.prepare(prompt, adapter, RequestOptions(greedy, {}, tools=offered)).request
        for prompt, offered in zip(prompts, tools_of_each, strict=True)
    ]
    merged_engine = BatchingEngine(load_base(merged, quantization=None))
    try:
        actual = merged_engine.generate([replace(request, adapter=None) for request in requests])
    finally:
        merged_engine.close()
    expected = engine.generate(requests)
    return sum(a[0].text == b[0].text for a, b in zip(actual, expected, strict=True)) / len(prompts)
