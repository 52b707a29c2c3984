"""What `model` names: the bare base, an adapter, a blend, or the router's choice."""

from __future__ import annotations

from adapterhub.errors import AdapterNotFoundError, InvalidRequestError
from adapterhub.lora.blending.resolving import parse_weights
from adapterhub.registry.references import Ref
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
    names = {*BASE_NAMES, state.base_model}
    if state.config.base_model is None:
        names.add(state.hub.engine.base_name)
    # `a:0.7+b:0.3` is a blend: a prefix is only taken off if it is the base's name.
    prefix = next((f"{name}:" for name in names if model.startswith(f"{name}:")), "")
    named = model.removeprefix(prefix)
    if named in names:
        return None
    if named != AUTO:
        _check_exists(model, named, state.caller)
    return named


def _check_exists(model: str, reference: str, caller: Caller) -> None:
    """Refuses what no adapter can be called, and what the caller may not use, as if it did not exist."""
    try:
        parts = parse_weights(reference)
    except InvalidRequestError as error:
        raise AdapterNotFoundError(error.message, hint=error.hint) from error
    try:
        names = [Ref.parse(part).name for part, _ in parts]
    except InvalidRequestError as error:
        raise no_model(model) from error
    if not all(map(caller.may_use, names)):
        raise no_model(model)
