"""Which adapter a call means, and what identifies its answers."""

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


def chosen(kwargs: Mapping[str, Any], config: RunnableConfig | None = None) -> str | None:
    """The adapter that a call's arguments or its config name; None if neither does.

    Args:
        kwargs: The call's; `model` and `adapter` mean the same.
        config: The call's; if not given, the one around it.

    Raises:
        InvalidRequestError: `model` and `adapter` name two.
    """
    named = {kwargs[key] for key in ("model", "adapter") if kwargs.get(key) is not None}
    if len(named) > 1:
        raise InvalidRequestError(
            f"model= and adapter= mean the same, and say {' and '.join(sorted(named))}."
        )
    if named:
        return _checked(named.pop())
    return _checked(ensure_config(config).get("configurable", {}).get(CONFIG_KEY))


def without_choice(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are about something else."""
    return {key: value for key, value in kwargs.items() if key not in ("model", "adapter")}


def check(hub: AdapterHub, adapter: str) -> None:
    """Refuses an adapter that there is not.

    Raises:
        AdapterNotFoundError: There is no such adapter.
        InvalidRequestError: It is no reference.
    """
    if adapter != "auto":  # which may be any of them, and reading all cards takes time
        cards_of(hub, adapter)


def cards_of(hub: AdapterHub, adapter: str) -> list[AdapterCard]:
    """The adapters that may answer; all of them for `"auto"`.

    Raises:
        AdapterNotFoundError: There is no such adapter.
        InvalidRequestError: It is no reference.
    """
    if adapter == "auto":
        return hub.registry.list()
    if not names_adapter(adapter):
        return []
    return [card for card, _ in resolve_adapter(adapter, hub.registry.resolve).parts]


def identity(hub: AdapterHub, adapter: str) -> dict[str, Any]:
    """What decides an answer beside the request: the base, and the cards and weights of the adapters that may answer.

    A cache whose key holds it gives no answer of another adapter, another version, or a card that was changed.
    """
    fingerprint = hub.engine.fingerprint
    return {
        "base": hub.engine.base_name,
        "base_fingerprint": fingerprint.digest if fingerprint else None,
        "adapter_digest": _digest(cards_of(hub, adapter)),
    }


def _digest(cards: Iterable[AdapterCard]) -> str:
    """Covers the cards too: prompts and sampling defaults stand there."""
    texts = sorted(f"{card.ref} {card.digest} {card.model_dump_json()}" for card in cards)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _checked(name: Any) -> str | None:
    if name is not None and (not isinstance(name, str) or not name):
        raise InvalidRequestError(f"An adapter is named by a text that is not empty, not {name!r}.")
    return name
