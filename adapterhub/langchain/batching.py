"""Batching: how a batch's requests reach the hub concurrently, whichever adapters their configs name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list

from adapterhub.langchain.adapter_selection import selected_adapter

_MAX_THREADS = 128


def with_concurrency(config: Any, count: int) -> list[RunnableConfig]:
    """Configs with a thread for each request of a batch, where they set no `max_concurrency` of their own."""
    threads: RunnableConfig = {"max_concurrency": min(max(count, 1), _MAX_THREADS)}
    return [
        {**each, **threads} if each.get("max_concurrency") is None else each
        for each in get_config_list(config, count)
    ]


@dataclass(frozen=True)
class AdapterBatch:
    """The requests of a batch for one adapter.

    Attributes:
        indices: Their indices in the whole batch.
        inputs: Their inputs.
        configs: Their configs.
        adapter: The adapter; None for the model's own.
    """

    indices: list[int]
    inputs: list[Any]
    configs: list[RunnableConfig]
    adapter: str | None


def group_by_adapter(inputs: Sequence[Any], config: Any, kwargs: Mapping[str, Any]) -> list[AdapterBatch]:
    """Groups a batch by the adapter that the call or the configs name."""
    configs = get_config_list(config, len(inputs))
    if configs and configs[0].get("max_concurrency") is not None:
        # langchain-core splits such a batch and runs the parts one after the other.
        indices = list(range(len(inputs)))
        return [AdapterBatch(indices, list(inputs), configs, selected_adapter(kwargs, {}))]
    batches: dict[str | None, AdapterBatch] = {}
    for index, (each, its_config) in enumerate(zip(inputs, configs, strict=True)):
        adapter = selected_adapter(kwargs, its_config)
        batch = batches.setdefault(adapter, AdapterBatch([], [], [], adapter))
        batch.indices.append(index)
        batch.inputs.append(each)
        batch.configs.append(its_config)
    return list(batches.values())


def restore_order(batches: Sequence[AdapterBatch], answers: Iterable[Sequence[str]]) -> list[str]:
    """The answers of all batches in the order of the inputs."""
    by_index: dict[int, str] = {}
    for batch, texts in zip(batches, answers, strict=True):
        by_index.update(zip(batch.indices, texts, strict=True))
    return [by_index[index] for index in sorted(by_index)]
