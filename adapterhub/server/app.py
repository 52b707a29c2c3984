"""Puts the server's parts together."""

from __future__ import annotations

from fastapi import FastAPI

import adapterhub
from adapterhub.hub import AdapterHub
from adapterhub.server.access.audit import AUDIT_FILE, AuditLog
from adapterhub.server.access.control import AccessControl
from adapterhub.server.adapters.serving import AdapterServing
from adapterhub.server.config import ServerConfig
from adapterhub.server.errors import add_error_handlers
from adapterhub.server.middleware.access import AccessMiddleware
from adapterhub.server.openapi_document import openapi_document
from adapterhub.server.routes import chat, lora_adapters, models, registry, router, server_info
from adapterhub.server.state import ServerState

_ROUTERS = (
    chat.router,
    models.router,
    lora_adapters.router,
    registry.router,
    router.router,
    server_info.router,
)


def create_app(hub: AdapterHub, config: ServerConfig | None = None) -> FastAPI:
    """The application, for an ASGI server or a test; `serve` runs it.

    Args:
        hub: Answers; the caller closes it.
        config: The settings.
    """
    app = FastAPI(
        title="adapterhub",
        summary="OpenAI's API over one base and its adapters.",
        version=adapterhub.__version__,
        docs_url=None,  # their pages load scripts from other hosts
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.server = state = _state(hub, config or ServerConfig())
    app.openapi = lambda: openapi_document(app)  # type: ignore[method-assign]
    add_error_handlers(app)
    for one in _ROUTERS:
        app.include_router(one)
    app.add_middleware(AccessMiddleware, access=state.access)
    return app


def _state(hub: AdapterHub, config: ServerConfig) -> ServerState:
    return ServerState(
        hub,
        config,
        access=AccessControl(config.api_key_file, config.admin_key_file),
        audit=AuditLog(config.audit_log or hub.registry.root / AUDIT_FILE),
        serving=AdapterServing(hub),
    )
