"""A server in memory with the interface of `VLLMClient`, so that tests of a fleet take no time: see `virtual_time`."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from adapterhub.errors import AdapterIncompatibleError
from adapterhub.lora.request import StoredLoraRequest
from adapterhub.vllm.client import ServedModels
from adapterhub.vllm.unavailable import AdapterNotLoadedError, ReplicaUnavailableError


def stored(name: str, version: int = 1) -> StoredLoraRequest:
    """A version of an adapter with a digest of its own."""
    digest = hashlib.sha256(f"{name}@{version}".encode()).hexdigest()
    return StoredLoraRequest(f"{name}@{version}", f"sha256:{digest}", Path(f"/registry/{name}/{version}"))


@dataclass(eq=False)
class SimulatedServer:
    """Answers as a vLLM server does; its own client.

    Attributes:
        url: Its address.
        up: Whether it answers.
        load_seconds: How long loading takes.
        refuses: Names of adapters that it cannot load.
        loaded: Adapters: name -> folder.
        loads: How often each was loaded.
        unloads: How often each was unloaded.
        probes: How often it was asked whether it is healthy.
        started: When it was started.
        base: What it was given as `--model`.
        closed: Whether its client was closed.
    """

    url: str
    up: bool = True
    load_seconds: float = 0.1
    refuses: set[str] = field(default_factory=set)
    loaded: dict[str, str] = field(default_factory=dict)
    loads: Counter[str] = field(default_factory=Counter)
    unloads: Counter[str] = field(default_factory=Counter)
    probes: int = 0
    started: float = 1.0
    base: str = "/models/demo"
    closed: bool = False

    def kill(self) -> None:
        """Ends it, and what it answers."""
        self.up = False

    def start(self) -> None:
        """Starts it again, with nothing loaded."""
        self.up, self.loaded, self.started = True, {}, self.started + 1

    def _check(self) -> None:
        if not self.up:
            raise ReplicaUnavailableError(f"{self.url} cannot be reached.")

    async def is_healthy(self) -> bool:
        self.probes += 1
        return self.up

    async def start_time(self) -> float | None:
        self._check()
        return self.started

    async def models(self) -> ServedModels:
        await asyncio.sleep(0.001)
        self._check()
        return ServedModels("demo", self.base, 2048, dict(self.loaded))

    async def load(self, name: str, folder: Path) -> None:
        self._check()
        await asyncio.sleep(self.load_seconds)
        self._check()
        if name in self.refuses:
            raise AdapterIncompatibleError(f"{name} is not for this base.")
        if name not in self.loaded:
            self.loads[name] += 1
            self.loaded[name] = str(folder)

    async def unload(self, name: str) -> None:
        self._check()
        await asyncio.sleep(0.001)
        self.unloads[name] += 1
        self.loaded.pop(name, None)

    async def answer(self, model: str, seconds: float) -> AsyncIterator[str]:
        """Streams the name of the model that answers, twice: soon, and at the end."""
        self._check()
        if model not in ("demo", *self.loaded):
            raise AdapterNotLoadedError(f"{self.url} has no {model}.")
        start = self.started
        for pause in (min(0.05, seconds), max(seconds - 0.05, 0)):
            await asyncio.sleep(pause)
            if not self.up or self.started != start:
                raise ReplicaUnavailableError(f"{self.url} went away.")
            yield model

    async def aclose(self) -> None:
        self.closed = True
