"""What all routes share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Annotated

from fastapi import Depends, Request

from adapterhub.hub import AdapterHub
from adapterhub.server.config import ServerConfig
from adapterhub.tool_calling import ToolCallFormats


@dataclass(frozen=True)
class ServerState:
    """The parts of one server; `create_app` makes it and keeps it as `app.state.server`.

    Attributes:
        hub: Answers.
        config: The settings.
        call_formats: The tool call formats of chat templates.
    """

    hub: AdapterHub
    config: ServerConfig
    call_formats: ToolCallFormats = field(default_factory=ToolCallFormats)

    @property
    def base_model(self) -> str:
        """The id of the bare base, without the path of a folder."""
        return self.config.base_model or PurePath(self.hub.engine.base_name).name


def server_state(request: Request) -> ServerState:
    """The state, as a dependency of routes."""
    state: ServerState = request.app.state.server
    return state


State = Annotated[ServerState, Depends(server_state)]
