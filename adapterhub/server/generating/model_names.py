"""What `model` names: the bare base, an adapter, a blend, or the router's choice."""

from __future__ import annotations

from adapterhub.requests.preparing import BASE_NAMES
from adapterhub.server.access.caller import Caller, no_model
from adapterhub.server.state import ServerState

AUTO = "auto"


def adapter_of(model: str, state: ServerState) -> str | None:
    """The `adapter=` of a call of the hub; whether it exists is the hub's to say, where the caller may know.

    Args:
        model: `auto`, `base`, the base's name, a reference, a blend, or one of these after the base's name and `:`, as
            SGLang's clients write it.
        state: Knows the base and the caller.

    Raises:
        AdapterNotFoundError: It does not exist for the caller.
    """
    names = {*BASE_NAMES, state.base_model, state.hub.engine.base_name}
    # `a:0.7+b:0.3` is a blend: a prefix is only taken off if it is the base's name.
    prefix = next((f"{name}:" for name in names if model.startswith(f"{name}:")), "")
    named = model.removeprefix(prefix)
    if named in names:
        return None
    if named != AUTO:
        _check_exists(model, named, state.caller)
    return named


def _check_exists(model: str, reference: str, caller: Caller) -> None:
    """Refuses what names an adapter that the caller may not use, as if it did not exist."""
    if caller.adapters is None:
        return
    parts = (part.partition(":")[0].partition("@")[0] for part in reference.split("+"))
    if not all(map(caller.may_use, parts)):
        raise no_model(model)
