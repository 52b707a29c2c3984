"""Puts the server's parts together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

import adapterhub
from adapterhub.hub import AdapterHub
from adapterhub.server.config import ServerConfig
from adapterhub.server.errors import add_error_handlers
from adapterhub.server.middleware.access import AccessMiddleware
from adapterhub.server.middleware.observing import ObservingMiddleware
from adapterhub.server.openapi_document import openapi_document
from adapterhub.server.routes import (
    chat,
    completions,
    lora_adapters,
    metrics,
    models,
    not_implemented,
    page,
    registry,
    router,
    server_info,
    stats,
)
from adapterhub.server.state import ServerState

_ROUTERS = (
    chat.router,
    completions.router,
    lora_adapters.router,
    metrics.router,
    models.router,
    not_implemented.router,
    page.router,
    registry.router,
    router.router,
    server_info.router,
    stats.router,
)


def create_app(hub: AdapterHub, config: ServerConfig | None = None) -> FastAPI:
    """The application, for an ASGI server or a test; `serve` runs it.

    Args:
        hub: Answers; the caller closes it.
        config: The settings.
    """
    state = ServerState.of(hub, config or ServerConfig())
    app = FastAPI(
        lifespan=_lifespan,
        title="adapterhub",
        summary="OpenAI's API over one base and its adapters.",
        version=adapterhub.__version__,
        docs_url=None,  # their pages load scripts from other hosts
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.server = state
    app.openapi = lambda: openapi_document(app)  # type: ignore[method-assign]
    add_error_handlers(app)
    for one in _ROUTERS:
        app.include_router(one)
    # The outermost is the last that is added.
    app.add_middleware(AccessMiddleware, state.access)
    app.add_middleware(ObservingMiddleware, state.metrics)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await asyncio.to_thread(app.state.server.metrics.close)
