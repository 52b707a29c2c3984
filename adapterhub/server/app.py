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
from adapterhub.server.middleware.observing import ObservingMiddleware
from adapterhub.server.openapi_document import openapi_document
from adapterhub.server.routes import (
    chat,
    completions,
    metrics,
    models,
    not_implemented,
    page,
    stats,
)
from adapterhub.server.state import ServerState

_ROUTERS = (
    chat.router,
    completions.router,
    metrics.router,
    models.router,
    not_implemented.router,
    page.router,
    stats.router,
)


def create_app(hub: AdapterHub, config: ServerConfig | None = None) -> FastAPI:
    """The application, for an ASGI server or a test; `serve` runs it.

    Args:
        hub: Answers; the caller closes it.
        config: The settings.
    """
    state = ServerState(hub, config or ServerConfig())
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
    for router in _ROUTERS:
        app.include_router(router)
    app.add_middleware(ObservingMiddleware, state.metrics)  # the outermost: the last that is added
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await asyncio.to_thread(app.state.server.metrics.close)
