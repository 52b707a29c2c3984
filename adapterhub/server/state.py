"""What all routes share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath
from typing import Annotated

from fastapi import Depends, Request

from adapterhub.hub import AdapterHub
from adapterhub.server.config import ServerConfig
from adapterhub.server.generating.token_texts import TokenTexts
from adapterhub.server.lifecycle import Lifecycle
from adapterhub.server.metrics import ServerMetrics
from adapterhub.tool_calling import ToolCallFormats


@dataclass(frozen=True)
class ServerState:
    """The parts of one server; `create_app` makes it and keeps it as `app.state.server`.

    Attributes:
        hub: Answers.
        config: The settings.
        lifecycle: How far the server is.
    """

    hub: AdapterHub
    config: ServerConfig
    lifecycle: Lifecycle

    @property
    def base_model(self) -> str:
        """The id of the bare base, without the path of a folder."""
        return self.config.base_model or PurePath(self.hub.engine.base_name).name

    @cached_property
    def metrics(self) -> ServerMetrics:
        """What counts, and makes spans."""
        return ServerMetrics(self.hub, self.base_model, max_adapters=self.config.max_metrics_adapters)

    @cached_property
    def token_texts(self) -> TokenTexts:
        """The texts of the base's tokens."""
        return TokenTexts(self.hub.engine.tokenizer)

    @cached_property
    def call_formats(self) -> ToolCallFormats:
        """The tool call formats of chat templates."""
        return ToolCallFormats()

    def close(self) -> None:
        """Sends the spans that are left; blocks until then. The hub stays open."""
        self.metrics.close()


def server_state(request: Request) -> ServerState:
    """The state, as a dependency of routes."""
    state: ServerState = request.app.state.server
    return state


State = Annotated[ServerState, Depends(server_state)]
