"""Models as `/v1/models` describes them."""

from __future__ import annotations

import time
from datetime import datetime

from adapterhub.lora.blending.resolving import resolve_adapter
from adapterhub.registry import AdapterCard
from adapterhub.server.access.caller import no_model
from adapterhub.server.generating.model_names import AUTO, adapter_of, base_names
from adapterhub.server.protocol.models import Model
from adapterhub.server.state import ServerState

_STARTED = int(time.time())


def describe_models(state: ServerState) -> list[Model]:
    """The base, `auto`, and the adapters that can be served, by name; reads the registry.

    Args:
        state: The server's parts.
    """
    cards = [card for card in state.hub.registry.list() if _is_served(card, state)]
    return [_base(state), *([_auto(state)] if cards else []), *(_adapter(card, state) for card in cards)]


def describe_model(model: str, state: ServerState) -> Model:
    """One model; reads the registry.

    Args:
        model: As in a request.
        state: The server's parts.

    Raises:
        AdapterNotFoundError: There is none that can be served.
    """
    named = adapter_of(model, state)
    if named is None:
        return _base(state)
    if named == AUTO:
        return _auto(state)
    resolved = resolve_adapter(named, state.hub.registry.resolve)
    if not all(state.hub.fits_base(card) for card, _ in resolved.parts):
        raise no_model(model)
    created = max(card.created_at for card, _ in resolved.parts)
    described = _model(model, created, root=resolved.ref, parent=state.base_model, state=state)
    return described.model_copy(update={"shares": _shares(named, state)})


def _shares(named: str, state: ServerState) -> dict[str, float] | None:
    """Version -> its share of the requests for an alias, if several share it."""
    name, _, pointer = named.partition("@")
    alias = state.hub.registry.aliases(name).get(pointer) if pointer and ":" not in named else None
    return (
        {f"{name}@{version}": share for version, share in alias.shares.items()}
        if alias and alias.is_split
        else None
    )


def _is_served(card: AdapterCard, state: ServerState) -> bool:
    is_named = card.name not in base_names(state) and state.caller.may_use(card.name)
    return card.status == "ready" and is_named and state.hub.fits_base(card)


def _base(state: ServerState) -> Model:
    return _model(state.base_model, None, root=state.base_model, parent=None, state=state)


def _auto(state: ServerState) -> Model:
    return _model(AUTO, None, root=AUTO, parent=state.base_model, state=state)


def _adapter(card: AdapterCard, state: ServerState) -> Model:
    return _model(card.name, card.created_at, root=card.ref, parent=state.base_model, state=state)


def _model(
    model: str, created: datetime | None, *, root: str, parent: str | None, state: ServerState
) -> Model:
    return Model(
        id=model,
        created=int(created.timestamp()) if created else _STARTED,
        root=root,
        parent=parent,
        max_model_len=state.hub.engine.context_length,
    )
