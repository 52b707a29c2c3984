"""Selecting the adapter of a call, and what identifies its answers in a cache."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from langchain_core.runnables import RunnableConfig, ensure_config

from adapterhub.errors import InvalidRequestError
from adapterhub.hub import AdapterHub
from adapterhub.lora.blending import resolve_adapter
from adapterhub.registry import AdapterCard
from adapterhub.requests.preparing import names_adapter

CONFIG_KEY = "adapter"
"""The key under `config["configurable"]` that names an adapter."""


def selected_adapter(kwargs: Mapping[str, Any], config: RunnableConfig | None = None) -> str | None:
    """The adapter that a call's arguments or its config name; None if neither names one.

    Args:
        kwargs: The call's; `model` and `adapter` mean the same.
        config: The call's; the config of the surrounding run if not given.

    Raises:
        InvalidRequestError: `model` and `adapter` differ.
    """
    named = {kwargs[key] for key in ("model", "adapter") if kwargs.get(key) is not None}
    if len(named) > 1:
        raise InvalidRequestError(
            f"model= and adapter= mean the same, but are {' and '.join(sorted(named))}."
        )
    if named:
        return _validated(named.pop())
    return _validated(ensure_config(config).get("configurable", {}).get(CONFIG_KEY))


def without_adapter(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments without `model` and `adapter`."""
    return {key: value for key, value in kwargs.items() if key not in ("model", "adapter")}


def check_adapter(hub: AdapterHub, adapter: str) -> None:
    """Checks that an adapter exists.

    Raises:
        AdapterNotFoundError: There is no such adapter.
        InvalidRequestError: It is not a valid reference.
    """
    if adapter != "auto":  # it may be any adapter, and reading all cards takes time
        candidate_cards(hub, adapter)


def candidate_cards(hub: AdapterHub, adapter: str) -> list[AdapterCard]:
    """The cards of the adapters that may answer; all cards for `"auto"`.

    Raises:
        AdapterNotFoundError: There is no such adapter.
        InvalidRequestError: It is not a valid reference.
    """
    if adapter == "auto":
        return hub.registry.list()
    if not names_adapter(adapter):
        return []
    return [card for card, _ in resolve_adapter(adapter, hub.registry.resolve).parts]


def cache_identity(hub: AdapterHub, adapter: str) -> dict[str, Any]:
    """The part of a cache key that identifies the base, and the cards and weights of the adapters that may answer.

    With it, a cache never returns an answer of another adapter, another version or an earlier card.
    """
    fingerprint = hub.engine.fingerprint
    return {
        "base": hub.engine.base_name,
        "base_fingerprint": fingerprint.model_dump_json() if fingerprint else None,
        "adapter_digest": _digest(candidate_cards(hub, adapter)),
    }


def _digest(cards: Iterable[AdapterCard]) -> str:
    """Covers the cards too, for their prompts and sampling defaults."""
    texts = sorted(f"{card.ref} {card.digest} {card.model_dump_json()}" for card in cards)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _validated(name: Any) -> str | None:
    if name is not None and (not isinstance(name, str) or not name):
        raise InvalidRequestError(f"The name of an adapter is a non-empty string, not {name!r}.")
    return name
