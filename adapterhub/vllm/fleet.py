"""Several servers that serve the adapters of one registry: each request gets a lease of one of them.

The server is chosen by adapter affinity. The adapter is loaded there at its first use, under a name that carries its
digest, so that no server can answer with another one.
"""

from __future__ import annotations

from asyncio import FIRST_COMPLETED, gather, wait
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from adapterhub.errors import CapacityError, ConfigError, EngineClosedError, InvalidRequestError
from adapterhub.fleet import by_affinity
from adapterhub.lora.request import LoraRequest, StoredLoraRequest
from adapterhub.registry.store import AdapterRegistry
from adapterhub.vllm.adapter_folders import AdapterFolders
from adapterhub.vllm.adapter_names import model_name, stored_adapter
from adapterhub.vllm.blends import MaterialisedBlends
from adapterhub.vllm.client import VLLMClient
from adapterhub.vllm.reconciling import Reconciler
from adapterhub.vllm.replica import CommonBase, Replica, ReplicaState
from adapterhub.vllm.unavailable import ReplicaUnavailableError
from adapterhub.vllm.wanted_adapters import RegisteredAdapters, WantedAdapters

_RETRY = "Send the request again a little later."


@dataclass(frozen=True)
class FleetLimits:
    """Limits of a fleet, each of them for one server.

    Attributes:
        max_in_flight: Maximum number of requests at the same time; beyond it they are refused. A server's
            `--max-num-seqs` or a little more keeps it busy.
        max_adapters: Maximum number of loaded adapters; its `--max-cpu-loras`.
        sync_seconds: How often it is asked whether it answers and what it has loaded.
        max_lora_rank: Its `--max-lora-rank`, which no API of vLLM tells. Adapters above it are refused before they are
            loaded, and blends are cut to it by SVD. None if it is not known.

    Raises:
        ConfigError: A limit is too low.
    """

    max_in_flight: int = 256
    max_adapters: int = 64
    sync_seconds: float = 10.0
    max_lora_rank: int | None = None

    def __post_init__(self) -> None:
        rank = 1 if self.max_lora_rank is None else self.max_lora_rank
        if min(self.max_in_flight, self.max_adapters, rank) < 1 or self.sync_seconds <= 0:
            raise ConfigError("The limits of a fleet must be at least 1, and sync_seconds more than 0.")


@dataclass(frozen=True)
class Lease:
    """A server that has the adapter of a request loaded, while the request lasts.

    Attributes:
        client: The server's client.
        model: The request's model name there.
    """

    client: VLLMClient
    model: str

    def check_model(self, answered: object) -> None:
        """Returns if an answer says that the request's model gave it.

        Args:
            answered: The answer's `model`.

        Raises:
            ReplicaUnavailableError: It is another one's, so the server must get no more requests for now.
        """
        if answered != self.model:
            raise ReplicaUnavailableError(
                f"{self.client.url} was asked for {self.model} and answered with another model.",
                hint="Is there a proxy before it that rewrites model names?",
            )


class Fleet:
    """Servers with the same base. Used from one event loop, in which it is constructed; any thread may take `replicas`.

    Args:
        clients: One for each server; the fleet closes them.
        registry: Whose adapters they serve. What it no longer has is unloaded; None unloads nothing and blends nothing.
        adapters_at: The path of the registry's folder on the servers; None if it is the same.
        limits: Limits of each server.

    Attributes:
        blends: The blends that the servers are given as adapters.

    Raises:
        ConfigError: There is no server, one is given twice, or `adapters_at` is not usable.
    """

    def __init__(
        self,
        clients: Sequence[VLLMClient],
        *,
        registry: AdapterRegistry | None = None,
        adapters_at: str | Path | None = None,
        limits: FleetLimits | None = None,
    ) -> None:
        self._limits = limits or FleetLimits()
        self._wanted = WantedAdapters()
        self.blends = MaterialisedBlends(registry, self._limits.max_lora_rank)
        self._base = CommonBase()
        self._folders = AdapterFolders(
            registry=registry.root if registry else None,
            mounted_at=Path(adapters_at) if adapters_at else None,
        )
        self._replicas = {client.url: self._replica(client) for client in clients}
        if not clients or len(self._replicas) < len(clients):
            raise ConfigError("A fleet takes the URLs of one server or more, each of them once.")
        registered = RegisteredAdapters(registry, self.blends) if registry else None
        self._reconcilers = {
            url: Reconciler(
                replica,
                wanted=self._wanted,
                registered=registered,
                folders=self._folders,
                ready=self._ready,
                seconds=self._limits.sync_seconds,
            )
            for url, replica in self._replicas.items()
        }
        self._closed = False

    def _replica(self, client: VLLMClient) -> Replica:
        return Replica(
            client,
            max_in_flight=self._limits.max_in_flight,
            max_adapters=self._limits.max_adapters,
            max_lora_rank=self._limits.max_lora_rank,
            pinned=self._wanted.pinned,
            base=self._base,
        )

    @asynccontextmanager
    async def lease(self, adapter: LoraRequest | None) -> AsyncIterator[Lease]:
        """A server for one request, which has the request's adapter loaded.

        `ReplicaUnavailableError`, raised inside, tells the fleet that the server is gone, and `AdapterNotLoadedError`
        that it does not have the adapter after all. Another lease then is one of a server that is better.

        Args:
            adapter: The adapter; None for the bare base.

        Raises:
            AdapterHubError: The server cannot load the adapter, or the blend cannot be written as one.
            CapacityError: All servers are full; none was asked.
            EngineClosedError: The fleet is closed.
            ReplicaUnavailableError: No server answers, or the one that was chosen does not.
        """
        if adapter is None:
            async with self._lease(None) as lease:
                yield lease
            return
        async with self.blends.stored(adapter) as found, self._lease(stored_adapter(found)) as lease:
            yield lease

    @asynccontextmanager
    async def _lease(self, stored: StoredLoraRequest | None) -> AsyncIterator[Lease]:
        name = model_name(stored) if stored else None
        if stored:
            await self._folders.fetch(stored)
        replica = await self._choose(name)
        try:
            with replica.request(name):
                if stored and name:
                    await replica.load(name, stored, self._folders)
                yield Lease(replica.client, name or replica.base_model)
        except ReplicaUnavailableError:
            self._reconcilers[replica.client.url].wake()
            raise

    async def _choose(self, name: str | None) -> Replica:
        """The best server; if none takes requests, waits for those that are being probed."""
        while not self._closed:
            ready = self._ready()
            loads = [replica.load_for(name) for replica in ready]
            if ranked := by_affinity(loads, name):
                return self._replicas[ranked[0].name]
            if ready:
                raise CapacityError("All servers have as many requests as they may have.", hint=_RETRY)
            probes = [one.probe for one in self._reconcilers.values() if not one.probe.done()]
            if not probes:
                raise ReplicaUnavailableError(f"No server takes requests: {self._reasons()}", hint=_RETRY)
            await wait(probes, return_when=FIRST_COMPLETED)
        raise EngineClosedError("The engine is closed.")

    def _ready(self) -> list[Replica]:
        return [replica for replica in self._replicas.values() if replica.takes_requests]

    def _reasons(self) -> str:
        return " ".join(f"{state.url}: {state.reason}" for state in self.replicas())

    async def preload(self, adapter: LoraRequest) -> None:
        """Loads an adapter ahead of requests, and again after a restart; a pinned one on all servers.

        Returns once one server has it. A blend is not loaded again.

        Raises:
            AdapterHubError: As `lease`.
        """
        async with self.lease(adapter):
            if isinstance(adapter, StoredLoraRequest):  # not a blend, which nobody keeps for its next use
                self._wanted.preloaded[model_name(adapter)] = adapter
        self._wake_all()

    async def unload(self, adapter: LoraRequest) -> None:
        """Has every server unload an adapter, once no request uses it; a later request loads it again."""
        stored = self.blends.written(adapter)
        if stored is None:
            return
        name = model_name(stored_adapter(stored))
        self._wanted.drop(name)
        await gather(*(replica.adapters.unload(name) for replica in self._replicas.values()))

    def pin(self, adapter: LoraRequest, pinned: bool = True) -> None:
        """Has all servers load an adapter and not unload it to make room for others; or ends that.

        Raises:
            CapacityError: There would be no room for other adapters.
            InvalidRequestError: The adapter is a blend.
        """
        stored = stored_adapter(adapter)
        name = model_name(stored)
        if pinned:
            self._wanted.pin(name, stored, self._limits.max_adapters)
            self._wake_all()
        else:
            self._wanted.pinned.pop(name, None)

    def _wake_all(self) -> None:
        for reconciler in self._reconcilers.values():
            reconciler.wake()

    def drain(self, url: str, draining: bool = True) -> None:
        """Gives a server no new requests, so that it can be stopped; its running ones end. Or gives it requests again.

        Raises:
            InvalidRequestError: There is no such server.
        """
        self._find(url).draining = draining

    async def drained(self, url: str) -> None:
        """Returns once a server has no requests.

        Raises:
            InvalidRequestError: There is no such server.
        """
        await self._find(url).drained()

    def _find(self, url: str) -> Replica:
        if url not in self._replicas:
            raise InvalidRequestError(
                "There is no such server.", hint=f"There are: {', '.join(self._replicas)}."
            )
        return self._replicas[url]

    def replicas(self) -> tuple[ReplicaState, ...]:
        """A snapshot of each server."""
        return tuple(replica.state() for replica in self._replicas.values())

    async def aclose(self) -> None:
        """Ends everything in the background and closes the clients."""
        self._closed = True
        for url, replica in self._replicas.items():
            await self._reconcilers[url].aclose()
            await replica.adapters.aclose()
            await replica.client.aclose()
