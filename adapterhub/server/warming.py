"""What the first clients would wait for, and the event loop would stand still for, done before the server is ready.

First uses import modules, build validators and describe the API: 20 to 150 ms each, in which no other answer goes on.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Scope

from adapterhub.engine.frozen_heap import freeze_more
from adapterhub.errors import AdapterHubError, RoutingError
from adapterhub.hub import AdapterHub
from adapterhub.server.access.caller import Caller
from adapterhub.server.access.levels import Level

_MESSAGES = [{"role": "user", "content": "Hello"}]
_FUNCTION = {"name": "greet", "parameters": {"type": "object", "properties": {"name": {"type": "string"}}}}
_CHAT = {"model": "base", "messages": _MESSAGES, "max_tokens": 2}
_RESPONSE = {"model": "base", "input": "Hello", "max_output_tokens": 2}
_COMPLETION = {"model": "base", "prompt": "Hello", "max_tokens": 2}
_REQUESTS: tuple[tuple[str, Mapping[str, Any] | None], ...] = (
    ("/v1/chat/completions", _CHAT),
    ("/v1/chat/completions", {**_CHAT, "stream": True, "logprobs": True}),
    ("/v1/chat/completions", {**_CHAT, "max_tokens": 40, "response_format": {"type": "json_object"}}),
    ("/v1/chat/completions", {**_CHAT, "tools": [{"type": "function", "function": _FUNCTION}]}),
    ("/v1/completions", _COMPLETION),
    ("/v1/completions", {**_COMPLETION, "stream": True}),
    ("/v1/responses", _RESPONSE),
    ("/v1/responses", {**_RESPONSE, "stream": True}),
    ("/tokenize", {"model": "base", "prompt": "Hello"}),
    ("/v1/models", None),
    ("/v1/adapterhub/adapters", None),
    ("/v1/adapterhub/stats", None),
    ("/metrics", None),
    ("/openapi.json", None),
)
"""Paths and bodies, None where they are read with GET."""
_log = logging.getLogger(__name__)


def make_ready(hub: AdapterHub, make_app: Callable[[AdapterHub], FastAPI]) -> FastAPI:
    """Makes an application and warms it up; blocks for some seconds.

    What exists then is left out of garbage collections, if the hub has frozen the heap: so close it at the end.

    Args:
        hub: The hub.
        make_app: From the hub to the application.

    Raises:
        AdapterHubError: The hub cannot answer.
    """
    hub.generate("Hello", None, max_tokens=2)
    with suppress(RoutingError):  # there is nothing to choose by
        _ = hub.router
    app = make_app(hub)
    asyncio.run(_ask_all(app))
    freeze_more()
    return app


async def _ask_all(app: FastAPI) -> None:
    await run_in_threadpool(lambda: None)  # a part of anyio is imported by its first use
    for path, body in _REQUESTS:
        try:
            await _ask(app, path, body)
        except AdapterHubError:
            pass  # an engine may lack a feature, such as output formats
        except Exception as error:  # noqa: BLE001  a base whose chat template fails can still complete texts
            _log.warning("A request to %s failed while warming up: %s", path, type(error).__name__)


async def _ask(app: FastAPI, path: str, body: Mapping[str, Any] | None) -> None:
    """Sends a request to a route, past the middleware: it needs no key, and no log line or metric has it."""
    content = b"" if body is None else json.dumps(body).encode()

    async def receive() -> Message:
        return {"type": "http.request", "body": content, "more_body": False}

    async def send(_: Message) -> None:
        pass

    scope: Scope = {
        "type": "http",
        "method": "GET" if body is None else "POST",
        "path": path,
        "query_string": b"",
        "headers": [],
        "app": app,
        "state": {"caller": Caller("warm-up", Level.ADMIN)},
    }
    await AsyncExitStackMiddleware(app.router)(scope, receive, send)
