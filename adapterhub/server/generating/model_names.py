"""What `model` names: the bare base, an adapter, a blend, or the router's choice."""

from __future__ import annotations

from dataclasses import replace

from adapterhub.errors import AdapterNotFoundError, InvalidRequestError
from adapterhub.lora.blending.resolving import check_parts, parse_weights
from adapterhub.registry.references import Ref
from adapterhub.requests.preparing import BASE_NAMES
from adapterhub.routing import RouteFilter
from adapterhub.server.access.caller import Caller, no_model
from adapterhub.server.errors import FieldError
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
        FieldError: It is a blend that cannot be, whatever its adapters are.
    """
    names = base_names(state)
    # `a:0.7+b:0.3` is a blend: a prefix is only taken off if it is the base's name.
    prefix = next((f"{name}:" for name in names if model.startswith(f"{name}:")), "")
    named = model.removeprefix(prefix)
    if named in names:
        return None
    if named != AUTO:
        _check_exists(model, named, state.caller)
    return named


def base_names(state: ServerState) -> frozenset[str]:
    """What the bare base is called in `model`.

    An adapter of such a name, which another program may have registered, is not served under it: a request for the base
    is never answered by an adapter, nor the other way round. Its versions, as in `name@1`, are.

    Args:
        state: Knows the base.
    """
    own = () if state.config.base_model else (state.hub.engine.base_name,)
    return frozenset({*BASE_NAMES, state.base_model, *own})


def route_filter_of(state: ServerState) -> RouteFilter:
    """What the router may choose for the caller.

    Args:
        state: Knows the caller and the base.
    """
    return replace(state.caller.route_filter, deny=base_names(state))


def _check_exists(model: str, reference: str, caller: Caller) -> None:
    """Refuses what no adapter can be called, and what the caller may not use, as if it did not exist."""
    try:
        parts = parse_weights(reference)
    except InvalidRequestError as error:
        raise AdapterNotFoundError(error.message, hint=error.hint) from error
    try:
        check_parts(parts, reference)
    except InvalidRequestError as error:
        raise FieldError(error.message, "model", hint=error.hint) from error
    try:
        names = [Ref.parse(part).name for part, _ in parts]
    except InvalidRequestError as error:
        raise no_model(model) from error
    if not all(map(caller.may_use, names)):
        raise no_model(model)
