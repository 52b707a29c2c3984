"""What is known of one server: whether it answers, which adapters it has loaded, and who uses them."""

from __future__ import annotations

import asyncio
from collections.abc import Container, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from adapterhub.capabilities import Backend, check_adapter
from adapterhub.errors import AdapterHubError, ConfigError
from adapterhub.fleet import ReplicaLoad
from adapterhub.lora.request import StoredLoraRequest
from adapterhub.peft_format.config import WEIGHTS_FILE
from adapterhub.vllm.adapter_folders import AdapterFolders
from adapterhub.vllm.adapter_names import AdapterName
from adapterhub.vllm.circuit import Circuit
from adapterhub.vllm.client import ServedModels, VLLMClient
from adapterhub.vllm.loaded_adapters import LoadedAdapters
from adapterhub.vllm.unavailable import AdapterNotLoadedError, ReplicaUnavailableError


@dataclass(frozen=True)
class ReplicaState:
    """A snapshot of a server, for statistics.

    Attributes:
        url: Its address.
        ready: Whether it takes requests.
        reason: Why not; None if it is ready.
        draining: Whether it gets no new requests because it is to end.
        in_flight: Requests that it answers now.
        adapters: The model names of the adapters that it has loaded, the least recently used first.
        loads: How many adapters it was told to load so far.
        failures: How often it was found unavailable so far.
        started_at: When its process started, in seconds since 1970; None if it does not say.
    """

    url: str
    ready: bool
    reason: str | None
    draining: bool
    in_flight: int
    adapters: tuple[str, ...]
    loads: int
    failures: int
    started_at: float | None


class CommonBase:
    """The base that all servers of a fleet have: that of the first one that answers."""

    def __init__(self) -> None:
        self._root: str | None = None

    def check(self, models: ServedModels, url: str) -> None:
        """Returns if a server has it.

        Raises:
            ConfigError: It has another one.
        """
        self._root = self._root or models.root
        if models.root != self._root:
            raise ConfigError(
                f"The server {url} has the base {models.root!r}, and others have {self._root!r}.",
                hint="Start all servers of a fleet with the same --model.",
            )


class Replica:
    """One server of a fleet. Used from one event loop; other threads may take `state`.

    Args:
        client: Its client.
        max_in_flight: Maximum number of requests at the same time.
        max_adapters: Maximum number of loaded adapters.
        max_lora_rank: The highest rank that it takes; None if it is not known.
        pinned: Model names of adapters that are not unloaded to make room.
        base: The base that it must have.

    Attributes:
        client: Its client.
        circuit: Whether it answers.
        adapters: What it has loaded.
        base_model: The model name of its base; empty until it has answered.
        draining: Whether it gets no new requests.
        in_flight: Requests that it answers now.
    """

    def __init__(
        self,
        client: VLLMClient,
        *,
        max_in_flight: int,
        max_adapters: int,
        max_lora_rank: int | None,
        pinned: Container[str],
        base: CommonBase,
    ) -> None:
        self.client = client
        self.circuit = Circuit()
        self.adapters = LoadedAdapters(client, max_adapters, pinned)
        self.base_model = ""
        self.draining = False
        self.in_flight = 0
        self._max_in_flight = max_in_flight
        self._max_lora_rank = max_lora_rank
        self._base = base
        self._started_at: float | None = None
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def takes_requests(self) -> bool:
        """Whether it answers and is not draining; it may be full."""
        return self.circuit.closed and not self.draining

    def load_for(self, name: str | None) -> ReplicaLoad:
        """What the choice of a replica needs to know for an adapter; one that is being loaded counts as loaded."""
        adapters = frozenset({name} if name and self.adapters.expects(name) else ())
        count = self.adapters.count
        return ReplicaLoad(self.client.url, self.in_flight, self._max_in_flight, adapters, count)

    def state(self) -> ReplicaState:
        """A snapshot."""
        return ReplicaState(
            url=self.client.url,
            ready=self.takes_requests,
            reason=self.circuit.reason or ("draining" if self.draining else None),
            draining=self.draining,
            in_flight=self.in_flight,
            adapters=self.adapters.names,
            loads=self.adapters.loads,
            failures=self.circuit.failures,
            started_at=self._started_at,
        )

    async def probe(self) -> None:
        """Asks the server whether it answers and what it has loaded, and closes or opens its circuit.

        Raises:
            AdapterHubError: It does not answer, not as vLLM does, or with another base.
        """
        self.adapters.asking()
        try:
            if not await self.client.is_healthy():
                raise ReplicaUnavailableError(f"{self.client.url}/health does not answer, or not with 200.")
            self._started_at = await self.client.start_time()
            models = await self.client.models()
            self._base.check(models, self.client.url)
        except AdapterHubError as error:
            self.circuit.open(error.message)
            raise
        except Exception as error:  # a defect: the next probe has to wait as after a failure
            self.circuit.open(f"The probe failed ({type(error).__name__}).")
            raise
        self.base_model = models.base
        self.adapters.learn(name for name in models.adapters if AdapterName.parse(name))
        self.circuit.half_open()

    async def load(self, name: str, adapter: StoredLoraRequest, folders: AdapterFolders) -> None:
        """Loads an adapter unless it is loaded; one that vLLM does not run is refused before the server is asked.

        Args:
            name: Its model name.
            adapter: The adapter.
            folders: Where the server finds it.

        Raises:
            AdapterIncompatibleError: vLLM does not run it, or this server does not.
            AdapterHubError: As `VLLMClient.load`.
        """
        if not self.adapters.expects(name):
            await asyncio.to_thread(_check_runs_on_vllm, adapter, self._max_lora_rank)
        await self.adapters.load(name, folders.on_server(adapter))

    async def drained(self) -> None:
        """Returns once it has no requests."""
        await self._idle.wait()

    @contextmanager
    def request(self, name: str | None) -> Iterator[None]:
        """Counts a request; what it raises tells how the server is.

        Args:
            name: The model name of the request's adapter; None for the base.
        """
        self.in_flight += 1
        self._idle.clear()
        try:
            with self.adapters.using(name) if name else nullcontext(), self.failing_opens_circuit():
                yield
            self.circuit.succeeded()
        except AdapterNotLoadedError:
            self.adapters.forget(name or "")
            raise
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()

    @contextmanager
    def failing_opens_circuit(self) -> Iterator[None]:
        """Counts a failure of the server, and of several requests that one failure ends only the first."""
        failures = self.circuit.failures
        try:
            yield
        except AdapterNotLoadedError:  # it does answer
            raise
        except ReplicaUnavailableError as error:
            if self.circuit.failures == failures:
                self.circuit.open(error.message)
            raise


def _check_runs_on_vllm(adapter: StoredLoraRequest, max_lora_rank: int | None) -> None:
    """Returns if vLLM runs an adapter, as far as its files, where they are on this machine, tell.

    No API of vLLM tells its `--max-lora-rank`: where it is not known here, the server itself refuses ranks above it,
    and `VLLMClient.load` translates that.

    Raises:
        AdapterIncompatibleError: vLLM does not run it.
        AdapterInvalidError: The files are damaged.
    """
    if (adapter.folder / WEIGHTS_FILE).is_file():
        check_adapter(adapter.folder, Backend.VLLM, max_lora_rank=max_lora_rank, name=adapter.name)
