"""Puts the server's parts together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

import adapterhub
from adapterhub.hub import AdapterHub
from adapterhub.server.config import ServerConfig
from adapterhub.server.errors import add_error_handlers
from adapterhub.server.lifecycle import Lifecycle
from adapterhub.server.middleware.access import AccessMiddleware
from adapterhub.server.middleware.access_log import AccessLogMiddleware
from adapterhub.server.middleware.body_limit import BodyLimitMiddleware
from adapterhub.server.middleware.disconnect import DisconnectMiddleware
from adapterhub.server.middleware.draining import DrainingMiddleware
from adapterhub.server.middleware.failures import FailureMiddleware
from adapterhub.server.middleware.observing import ObservingMiddleware
from adapterhub.server.middleware.pacing import PacingMiddleware
from adapterhub.server.middleware.request_id import RequestIdMiddleware
from adapterhub.server.openapi_document import openapi_document
from adapterhub.server.routes import (
    chat,
    completions,
    fleet,
    health,
    lora_adapters,
    metrics,
    models,
    not_implemented,
    page,
    registry,
    responses,
    router,
    server_info,
    shadows,
    stats,
    tokenize,
)
from adapterhub.server.state import ServerState

_ROUTERS = (
    chat.router,
    completions.router,
    fleet.router,
    health.router,
    lora_adapters.router,
    metrics.router,
    models.router,
    not_implemented.router,
    page.router,
    registry.router,
    responses.router,
    router.router,
    server_info.router,
    shadows.router,
    stats.router,
    tokenize.router,
)
_GENERATING = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
"""What a client that leaves cancels."""
_ANSWER_HEADERS = tuple(
    f"x-adapterhub-{name}" for name in ("adapter", "version", "route", "confidence", "ignored")
)
"""What pages of other origins may read besides; CORS has no wildcard for a part of a name."""


def create_app(
    hub: AdapterHub, config: ServerConfig | None = None, *, lifecycle: Lifecycle | None = None
) -> FastAPI:
    """The application, for an ASGI server or a test; `serve` runs it.

    Args:
        hub: Answers; the caller closes it.
        config: The settings.
        lifecycle: What probes tell; if not given, the application is ready.
    """
    state = ServerState.of(hub, config or ServerConfig(), lifecycle or Lifecycle())
    app = FastAPI(
        lifespan=_lifespan,
        title="adapterhub",
        summary="OpenAI's API over one base and its adapters.",
        version=adapterhub.__version__,
        docs_url=None,  # their pages load scripts from other hosts
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
        middleware=_middleware(state),
    )
    app.state.server = state
    app.openapi = lambda: openapi_document(app)  # type: ignore[method-assign]
    add_error_handlers(app)
    for one in _ROUTERS:
        app.include_router(one)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    await asyncio.to_thread(app.state.server.close)


def _middleware(state: ServerState) -> list[Middleware]:
    """What every request passes, the outermost first."""
    config = state.config
    return [
        Middleware(ObservingMiddleware, state.metrics),
        Middleware(PacingMiddleware),
        Middleware(RequestIdMiddleware),
        *([Middleware(AccessLogMiddleware)] if config.access_log else []),
        *([_cors(config.cors_origins)] if config.cors_origins else []),
        Middleware(DrainingMiddleware, lifecycle=state.lifecycle),
        Middleware(AccessMiddleware, state.access),
        Middleware(BodyLimitMiddleware, max_bytes=partial(_max_bytes, config), seconds=config.body_seconds),
        Middleware(DisconnectMiddleware, paths=_GENERATING),
        Middleware(FailureMiddleware),
    ]


def _max_bytes(config: ServerConfig, path: str) -> int:
    """The largest body that a path takes."""
    return config.max_upload_bytes if registry.takes_uploads(path) else config.max_body_bytes


def _cors(origins: tuple[str, ...]) -> Middleware:
    """Lets pages of these origins call the server; they send the key themselves, and cookies are not used."""
    return Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=("GET", "POST", "DELETE", "PATCH", "PUT"),
        allow_headers=("*",),
        expose_headers=("x-request-id", "retry-after", *_ANSWER_HEADERS),
    )
