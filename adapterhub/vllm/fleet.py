"""Several servers that serve the adapters of one registry: each request gets a lease of one of them.

The server is chosen by adapter affinity. The adapter is loaded there at its first use, under a name that carries its
digest, so that no server can answer with another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from adapterhub.errors import CapacityError, ConfigError, EngineClosedError
from adapterhub.fleet import by_affinity
from adapterhub.lora.request import LoraRequest, StoredLoraRequest
from adapterhub.vllm.adapter_names import AdapterName
from adapterhub.vllm.reconciling import Reconciler
from adapterhub.vllm.replica import Replica, ReplicaClient, ReplicaState
from adapterhub.vllm.unavailable import ReplicaUnavailableError


@dataclass(frozen=True)
class FleetLimits:
    """Limits of a fleet, each of them for one server.

    Attributes:
        max_in_flight: Maximum number of requests at the same time; beyond it they are refused. A server's
            `--max-num-seqs` or a little more keeps it busy.
        max_adapters: Maximum number of loaded adapters; its `--max-cpu-loras`.
        sync_seconds: How often it is asked whether it answers and what it has loaded.
    """

    max_in_flight: int = 256
    max_adapters: int = 64
    sync_seconds: float = 10.0

    def __post_init__(self) -> None:
        if min(self.max_in_flight, self.max_adapters) < 1 or self.sync_seconds <= 0:
            raise ConfigError("The limits of a fleet must be at least 1, and sync_seconds more than 0.")


@dataclass(frozen=True)
class Lease:
    """A server that has the adapter of a request loaded, while the request lasts.

    Attributes:
        client: The server's client.
        model: The request's model name there.
    """

    client: ReplicaClient
    model: str


class Fleet:
    """Servers with the same base. Used from one event loop, in which it is constructed.

    Args:
        clients: One for each server; the fleet closes them.
        limits: Its limits.
    """

    def __init__(self, clients: Sequence[ReplicaClient], *, limits: FleetLimits | None = None) -> None:
        limits = limits or FleetLimits()
        self._replicas = [
            Replica(client, max_in_flight=limits.max_in_flight, max_adapters=limits.max_adapters)
            for client in clients
        ]
        self._reconcilers = {
            replica: Reconciler(replica, seconds=limits.sync_seconds) for replica in self._replicas
        }
        self._closed = False

    @asynccontextmanager
    async def lease(self, adapter: LoraRequest | None) -> AsyncIterator[Lease]:
        """A server for one request, which has the request's adapter loaded.

        `ReplicaUnavailableError`, raised inside, tells the fleet that the server is gone.

        Args:
            adapter: The adapter; None for the bare base.

        Raises:
            AdapterHubError: The server cannot load the adapter.
            CapacityError: All servers are full; none was asked.
            EngineClosedError: The fleet is closed.
            InvalidRequestError: The adapter is a blend.
            ReplicaUnavailableError: No server answers, or the one that was chosen does not.
        """
        name = str(AdapterName.of(adapter)) if adapter else None
        replica = await self._choose(name)
        try:
            with replica.request(name):
                if name and isinstance(adapter, StoredLoraRequest):
                    await replica.adapters.load(name, adapter.folder)
                yield Lease(replica.client, name or replica.base_model)
        except ReplicaUnavailableError:
            self._reconcilers[replica].failed()
            raise

    async def _choose(self, name: str | None) -> Replica:
        """The best replica; if none takes requests, waits for the probes that run."""
        while not self._closed:
            ready = {replica.client.url: replica for replica in self._replicas if replica.takes_requests}
            ranked = by_affinity([replica.load_figures() for replica in ready.values()], name)
            if ranked:
                return ready[ranked[0].name]
            if ready:
                raise CapacityError("All servers are full.", hint="Send the request again a little later.")
            if not (probes := [one.probe for one in self._reconcilers.values() if not one.probe.done()]):
                raise ReplicaUnavailableError(self._why_none(), hint="Send the request again a little later.")
            await asyncio.wait(probes, return_when=asyncio.FIRST_COMPLETED)
        raise EngineClosedError("The fleet is closed.")

    def _why_none(self) -> str:
        reasons = ", ".join(f"{state.url}: {state.reason}" for state in self.replicas())
        return f"No server takes requests ({reasons})."

    async def preload(self, adapter: LoraRequest) -> None:
        """Loads an adapter ahead of requests, on the server that its requests will go to.

        Raises:
            AdapterHubError: As `lease`.
        """
        async with self.lease(adapter):
            pass

    async def unload(self, adapter: LoraRequest) -> None:
        """Has every server unload an adapter, once no request uses it; a later request loads it again."""
        for replica in self._replicas:
            replica.adapters.retire(str(AdapterName.of(adapter)))

    def pin(self, adapter: LoraRequest, pinned: bool = True) -> None:
        """Excludes an adapter from being unloaded to make room for others, or includes it again."""
        name = str(AdapterName.of(adapter))
        for replica in self._replicas:
            (replica.adapters.pinned.add if pinned else replica.adapters.pinned.discard)(name)

    def replicas(self) -> tuple[ReplicaState, ...]:
        """A snapshot of each server."""
        return tuple(replica.state() for replica in self._replicas)

    async def aclose(self) -> None:
        """Ends everything in the background and closes the clients."""
        self._closed = True
        for replica, reconciler in self._reconcilers.items():
            await reconciler.aclose()
            await replica.adapters.aclose()
            await replica.client.aclose()
