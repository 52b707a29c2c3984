"""What all routes share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Annotated, Self

from fastapi import Depends, Request

from adapterhub.errors import ConfigError
from adapterhub.hub import AdapterHub
from adapterhub.server.access.audit import AUDIT_FILE, AuditLog
from adapterhub.server.access.caller import NOBODY, Caller
from adapterhub.server.access.control import AccessControl
from adapterhub.server.adapters.serving import AdapterServing
from adapterhub.server.config import ServerConfig
from adapterhub.server.generating.token_texts import TokenTexts
from adapterhub.server.lifecycle import Lifecycle
from adapterhub.server.metrics import ServerMetrics
from adapterhub.server.shadow_traffic import ShadowTraffic
from adapterhub.tool_calling import ToolCallFormats


@dataclass(frozen=True)
class ServerState:
    """The parts of one server; `create_app` makes it and keeps it as `app.state.server`.

    Attributes:
        hub: Answers.
        config: The settings.
        lifecycle: How far the server is.
        base_model: The id of the bare base, without the path of a folder.
        access: The keys.
        audit: The log of what admins do.
        serving: Loads and unloads adapters for admins.
        shadows: Sends copies of requests to shadows.
        metrics: What counts, and makes spans.
        token_texts: The texts of the base's tokens.
        call_formats: The tool call formats of chat templates.
        caller: Who sends the request, in a route.
    """

    hub: AdapterHub
    config: ServerConfig
    lifecycle: Lifecycle
    base_model: str
    access: AccessControl
    audit: AuditLog
    serving: AdapterServing
    shadows: ShadowTraffic
    metrics: ServerMetrics
    token_texts: TokenTexts
    call_formats: ToolCallFormats
    caller: Caller = NOBODY

    @classmethod
    def of(cls, hub: AdapterHub, config: ServerConfig, lifecycle: Lifecycle) -> Self:
        """The parts of a server of this hub.

        Args:
            hub: Answers.
            config: The settings.
            lifecycle: How far the server is.

        Raises:
            ConfigError: A key file is not valid, or an adapter has the name of the base.
        """
        base_model = config.base_model or PurePath(hub.engine.base_name).name
        if any(card.name == base_model for card in hub.registry.list()):
            raise ConfigError(
                f"The base and an adapter are both called {base_model!r}.",
                hint="Give the base another name with `--base-model`.",
            )
        shadows = ShadowTraffic(hub, lifecycle, max_running=config.max_shadow_requests)
        return cls(
            hub,
            config,
            lifecycle,
            base_model,
            access=AccessControl(config.api_key_file, config.admin_key_file),
            audit=AuditLog(config.audit_log or hub.registry.root / AUDIT_FILE),
            serving=AdapterServing(hub, base_model),
            shadows=shadows,
            metrics=ServerMetrics(
                hub, base_model, max_adapters=config.max_metrics_adapters, shadows=shadows.counts
            ),
            token_texts=TokenTexts(hub.engine.tokenizer),
            call_formats=ToolCallFormats(),
        )

    def close(self) -> None:
        """Sends the spans that are left; blocks until then. The hub stays open."""
        self.metrics.close()


async def server_state(request: Request) -> ServerState:
    """The state, as a dependency of routes; FastAPI calls one that is not async in a thread."""
    state: ServerState = request.app.state.server
    return replace(state, caller=request.state.caller)


State = Annotated[ServerState, Depends(server_state)]
