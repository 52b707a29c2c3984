"""The front: takes requests from Ray's HTTP proxy and hands each to a replica, by the adapter that it names."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import PurePath
from typing import Any

from fastapi import FastAPI
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapterhub.deploy.ray.config import ApplicationConfig
from adapterhub.deploy.ray.http_call import HttpCall
from adapterhub.deploy.ray.local_clients import LocalClientsMiddleware
from adapterhub.deploy.ray.replica_metrics import merged
from adapterhub.errors import AdapterHubError, CapacityError, EngineClosedError
from adapterhub.requests.preparing import BASE_NAMES
from adapterhub.server.access.control import AccessControl
from adapterhub.server.config import ServerConfig
from adapterhub.server.errors import add_error_handlers, error_response
from adapterhub.server.generating.model_names import AUTO
from adapterhub.server.middleware.body_limit import BodyLimitMiddleware
from adapterhub.server.middleware.local_names import LocalNamesMiddleware
from adapterhub.server.middleware.paths import path_of

_RETRY_AFTER_SECONDS = "1"
_METRICS = "/metrics"
_METRICS_SECONDS = 5.0
_log = logging.getLogger(__name__)


class Front:
    """The ingress deployment.

    Args:
        replicas: The handle of the deployment of `HubReplica`.
        config: The settings of the application.
    """

    def __init__(self, replicas: Any, config: ApplicationConfig) -> None:
        self._replicas = replicas
        self._config = config

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """What answers; Ray calls it once."""
        return front_app(self._replicas, self._config)


def front_app(replicas: Any, config: ApplicationConfig) -> FastAPI:
    """The application of a front.

    Keys and everything else are checked in the replica; here only what has to be known before a body is read.

    Args:
        replicas: The handle of the deployment of `HubReplica`.
        config: The settings of the application.
    """
    app = FastAPI(openapi_url=None, middleware=_middleware(config.server))
    add_error_handlers(app)
    app.mount("/", Forward(replicas, _without_adapter(config)))
    return app


class Forward:
    """Hands a request to a replica, and the answer back.

    Args:
        replicas: The handle of the deployment of `HubReplica`.
        without_adapter: What `model` may be without naming an adapter.
    """

    def __init__(self, replicas: Any, without_adapter: frozenset[str]) -> None:
        self._replicas = replicas
        self._without_adapter = without_adapter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientDisconnect):  # nobody waits for an answer
            call = await HttpCall.read(scope, receive, self._without_adapter)
            await self._answer(call, scope, receive, send)

    async def _answer(self, call: HttpCall, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False
        try:
            async with aclosing(self._answers(call)) as messages:
                async for message in messages:
                    begun = True
                    await send(_without_request_id(message))
        except (RayError, RayServeException, TimeoutError) as error:
            if begun:  # the status is sent: what is left is to close the connection
                raise
            _log.warning("A replica did not answer: %s", type(error).__name__)
            await error_response(_told(error), {"retry-after": _RETRY_AFTER_SECONDS})(scope, receive, send)

    async def _answers(self, call: HttpCall) -> AsyncGenerator[Message]:
        """The ASGI messages of the answer."""
        if path_of(call.scope) == _METRICS:
            for message in await self._metrics(call):
                yield message
            return
        answers = self._replicas.options(stream=True).answer.remote(call)
        try:
            async for messages in answers:
                for message in messages:
                    yield message
        finally:
            answers.cancel()  # does nothing where the answer has ended

    async def _metrics(self, call: HttpCall) -> list[Message]:
        """The metrics of all replicas, but for those that are gone; raises `TimeoutError` if one takes too long."""
        asked = self._replicas.broadcast("metrics", call)
        answers = await asked.results_async(timeout_s=_METRICS_SECONDS, return_exceptions=True)
        given = dict(one for one in answers if not isinstance(one, Exception))
        return await asyncio.to_thread(merged, given)  # thousands of lines to parse


def _without_request_id(message: Message) -> Message:
    """Ray's proxy adds the header itself."""
    if message["type"] != "http.response.start":
        return message
    headers = [(name, value) for name, value in message["headers"] if name != b"x-request-id"]
    return {**message, "headers": headers}


def _told(error: Exception) -> AdapterHubError:
    """What the client is told of a failure of Ray's."""
    if isinstance(error, BackPressureError):
        return CapacityError(
            "All replicas are busy and the queue is full.", hint="Send the request again later."
        )
    return EngineClosedError(
        "The replica that had the request is gone.", hint="Send the request again; another one may answer it."
    )


def _middleware(config: ServerConfig) -> list[Middleware]:
    has_keys = AccessControl(config.api_key_file, config.admin_key_file).needs_key
    local = [Middleware(LocalClientsMiddleware), Middleware(LocalNamesMiddleware, config.cors_origins)]
    return [
        *([] if has_keys or config.insecure else local),
        Middleware(
            BodyLimitMiddleware, max_bytes=lambda _: config.max_body_bytes, seconds=config.body_seconds
        ),
    ]


def _without_adapter(config: ApplicationConfig) -> frozenset[str]:
    base = [config.hub.base, PurePath(config.hub.base).name] if config.hub.base else []
    return frozenset({AUTO, *BASE_NAMES, *base, *filter(None, [config.server.base_model])})
