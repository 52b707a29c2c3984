"""The hub of a replica in tests: it repeats prompts slowly, and leaves its process id beside the registry."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

from adapterhub import AdapterHub, Completion, EchoEngine
from adapterhub.deploy.ray import ApplicationConfig
from adapterhub.engine.interface import Request
from adapterhub.registry import AdapterRegistry

TOKEN_SECONDS = 0.02


class SlowEngine(EchoEngine):
    """Takes its time for whole answers too, so that they can be cancelled."""

    async def agenerate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """The first completion of each request, one request after the other."""
        return [[await self._completion(request)] for request in requests]

    async def _completion(self, request: Request) -> Completion:
        async with aclosing(self.astream(request)) as stream:
            return Completion.of([output async for output in stream])


def open_hub(config: ApplicationConfig) -> AdapterHub:
    registry = Path(str(config.hub.registry))
    (registry.parent / "replicas" / str(os.getpid())).touch()
    return AdapterHub(SlowEngine(token_seconds=TOKEN_SECONDS), AdapterRegistry(registry))
