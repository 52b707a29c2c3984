"""What all routes share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Annotated

from fastapi import Depends, Request

from adapterhub.hub import AdapterHub
from adapterhub.server.access.audit import AuditLog
from adapterhub.server.access.caller import NOBODY, Caller
from adapterhub.server.access.control import AccessControl
from adapterhub.server.adapters.serving import AdapterServing
from adapterhub.server.config import ServerConfig


@dataclass(frozen=True)
class ServerState:
    """The parts of one server; `create_app` makes it and keeps it as `app.state.server`.

    Attributes:
        hub: Answers.
        config: The settings.
        access: The keys.
        audit: The log of what admins do.
        serving: Loads and unloads adapters for admins.
        caller: Who sends the request, in a route.
    """

    hub: AdapterHub
    config: ServerConfig
    access: AccessControl
    audit: AuditLog
    serving: AdapterServing
    caller: Caller = NOBODY

    @property
    def base_model(self) -> str:
        """The id of the bare base, without the path of a folder."""
        return self.config.base_model or PurePath(self.hub.engine.base_name).name


def server_state(request: Request) -> ServerState:
    """The state, as a dependency of routes."""
    state: ServerState = request.app.state.server
    return replace(state, caller=request.state.caller)


State = Annotated[ServerState, Depends(server_state)]
