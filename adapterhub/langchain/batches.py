"""Batches: how their requests reach the hub together, whichever adapters their configs name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import get_config_list

from adapterhub.langchain.choice import chosen

_MOST_THREADS = 128


def together(config: Any, count: int) -> list[RunnableConfig]:
    """Configs under which a batch's requests do not wait for each other in LangChain's pool of threads."""
    threads: RunnableConfig = {"max_concurrency": min(max(count, 1), _MOST_THREADS)}
    return [
        {**each, **threads} if each.get("max_concurrency") is None else each
        for each in get_config_list(config, count)
    ]


@dataclass(frozen=True)
class Part:
    """The requests of a batch that one adapter answers."""

    places: list[int]
    inputs: list[Any]
    configs: list[RunnableConfig]
    adapter: str | None


def parts_of(inputs: Sequence[Any], config: Any, kwargs: Mapping[str, Any]) -> list[Part]:
    """A batch by the adapter that the call or the configs name."""
    configs = get_config_list(config, len(inputs))
    if configs and configs[0].get("max_concurrency") is not None:
        # langchain-core cuts it into smaller batches, which come here one after the other.
        return [Part(list(range(len(inputs))), list(inputs), configs, chosen(kwargs, {}))]
    parts: dict[str | None, Part] = {}
    for place, (own, its_config) in enumerate(zip(inputs, configs, strict=True)):
        adapter = chosen(kwargs, its_config)
        part = parts.setdefault(adapter, Part([], [], [], adapter))
        part.places.append(place)
        part.inputs.append(own)
        part.configs.append(its_config)
    return list(parts.values())


def in_order(parts: Sequence[Part], answers: Iterable[Sequence[str]]) -> list[str]:
    """The answers of all parts in the order of the batch."""
    found: dict[int, str] = {}
    for part, texts in zip(parts, answers, strict=True):
        found.update(zip(part.places, texts, strict=True))
    return [found[place] for place in sorted(found)]
