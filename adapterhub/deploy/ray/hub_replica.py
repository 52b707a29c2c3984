"""A replica: one hub, and the server's application over it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import FastAPI
from ray.serve import get_replica_context
from starlette.types import Message

from adapterhub.config import MAX_PRIORITY
from adapterhub.deploy.ray.config import ApplicationConfig
from adapterhub.deploy.ray.http_call import HttpCall
from adapterhub.hub import AdapterHub
from adapterhub.server.app import create_app
from adapterhub.server.warming import make_ready


class HubReplica:
    """The deployment behind the fronts. Ray makes one in each replica's process, and calls the methods.

    Args:
        config: The settings of the application.
        open_hub: Loads the base and opens the registry; called in a thread.
    """

    _hub: AdapterHub
    _app: FastAPI

    async def __init__(  # type: ignore[misc]  # Ray awaits it, and serves once it returns
        self, config: ApplicationConfig, open_hub: Callable[[ApplicationConfig], AdapterHub]
    ) -> None:
        self._computes = not config.urls
        self._steps = 0
        self._hub = await asyncio.to_thread(open_hub, config)
        make_app = partial(create_app, config=config.server)
        self._app = await asyncio.to_thread(make_ready, self._hub, make_app)

    async def answer(self, call: HttpCall) -> AsyncGenerator[list[Message]]:
        """Answers one request; yields ASGI messages. Ray cancels it when the client has gone."""
        async with aclosing(call.answers(self._app)) as answers:
            async for messages in answers:
                yield messages

    async def metrics(self, call: HttpCall) -> tuple[str, list[Message]]:
        """Answers one request for `/metrics` in Prometheus' text format; with it the name of this replica."""
        plain = replace(call, scope={**call.scope, "headers": _without_accept(call.scope["headers"])})
        messages = [message async for some in plain.answers(self._app) for message in some]
        return get_replica_context().replica_id.unique_id, messages

    async def check_health(self) -> None:
        """Returns if the hub computes; Ray restarts a replica that has failed three times.

        One that has computed since the last time is not asked for a token: where it is busy, that would wait longer
        than Ray does, or be refused. A hub over vLLM servers is not asked: a new process would not bring them back.
        """
        if self._computes and self._steps == self._hub.stats().steps:
            await self._hub.agenerate("Hello", None, max_tokens=1, priority=MAX_PRIORITY)
        self._steps = self._hub.stats().steps

    def record_routing_stats(self) -> dict[str, Any]:
        """What the request router has to know: the names of the adapters that are loaded here, without blends."""
        adapters = self._hub.stats().adapters.items()
        loaded = [ref for ref, one in adapters if one.in_slot or one.in_host_memory]
        return {"adapters": sorted({ref.partition("@")[0] for ref in loaded if ":" not in ref})}

    def __del__(self) -> None:
        """Closes the hub; Ray calls it once running answers have ended."""
        if "_app" in self.__dict__:
            self._app.state.server.close()
        if "_hub" in self.__dict__:  # also where warming up has failed
            self._hub.close()


def _without_accept(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in headers if name != b"accept"]
