"""What `model` names: the bare base, an adapter, a blend, or the router's choice."""

from __future__ import annotations

from adapterhub.requests.preparing import BASE_NAMES
from adapterhub.server.state import ServerState

AUTO = "auto"


def adapter_of(model: str, state: ServerState) -> str | None:
    """The `adapter=` of a call of the hub; whether it exists is the hub's to say.

    Args:
        model: `auto`, `base`, the base's name, a reference, a blend, or one of these after the base's name and `:`, as
            SGLang's clients write it.
        state: Knows the base.
    """
    names = {*BASE_NAMES, state.base_model, state.hub.engine.base_name}
    # `a:0.7+b:0.3` is a blend: a prefix is only taken off if it is the base's name.
    prefix = next((f"{name}:" for name in names if model.startswith(f"{name}:")), "")
    named = model.removeprefix(prefix)
    return None if named in names else named
