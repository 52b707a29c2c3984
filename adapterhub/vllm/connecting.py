"""The engine's side of the wire: the thread that does all HTTP, the servers, and what they say they serve."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.errors import AdapterHubError, ConfigError
from adapterhub.lora.request import LoraRequest
from adapterhub.registry import AdapterRegistry
from adapterhub.vllm.base import ServedBase, load_served_base
from adapterhub.vllm.client import ServedModels, Timeouts, VLLMClient
from adapterhub.vllm.fleet import Fleet, FleetLimits
from adapterhub.vllm.loop_thread import LoopThread
from adapterhub.vllm.replica import ReplicaState
from adapterhub.vllm.running import SequenceRunner

API_KEY_VARIABLE = "ADAPTERHUB_UPSTREAM_API_KEY"


class Connection:
    """Servers, and the thread that talks to them. Any thread may call its methods.

    Args:
        urls: One URL, or several servers with the same base.
        limits: Limits for each server.
        timeouts: How long servers may take.
        api_key: The servers' key; if not given, that in the environment.
        registry: Whose adapters they serve.
        adapters_at: The path of its folder on the servers; None if it is the same.

    Attributes:
        loop: The thread.
        runner: What runs sequences there.
        context_length: Maximum number of tokens of a prompt and its completion, which all servers take.

    Raises:
        ConfigError: A URL is not valid, or the servers do not serve the same base.
        EngineError: No server answers as vLLM does.
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        limits: FleetLimits | None = None,
        timeouts: Timeouts | None = None,
        api_key: str | None = None,
        registry: AdapterRegistry | None = None,
        adapters_at: str | Path | None = None,
    ) -> None:
        key = api_key or os.environ.get(API_KEY_VARIABLE) or None
        self._process_id = os.getpid()
        self.loop = LoopThread()
        self._clients: list[VLLMClient] = []
        try:
            self._clients += self.loop.run(_clients(split_urls(urls), key, timeouts))
            self._models = self.loop.run(_served_models(self._clients))
            self._fleet, self.runner = self.loop.run(_fleet(self._clients, registry, adapters_at, limits))
        except BaseException:
            self.loop.close(_aclose(self._clients))
            raise
        self.context_length = min(models.max_model_len for models in self._models)

    def served_base(self, base: str | Path | ServedBase | None, revision: str | None) -> ServedBase:
        """The base, which must be the servers'.

        Args:
            base: Its name; if not given, what the servers were given as `--model`.
            revision: A branch, tag or commit of a hub id.

        Raises:
            ConfigError: It cannot be read, or is another one than the servers'.
        """
        if isinstance(base, ServedBase):
            return base
        root = self._models[0].root
        if base is None:
            return _base_of_server(root, revision)
        served = load_served_base(base, revision=revision)
        is_readable = (Path(root) / "config.json").is_file()
        if is_readable and served.fingerprint and (difference := _difference(Path(root), served.fingerprint)):
            raise ConfigError(
                f"The vLLM servers have another base than {str(base)!r}: {difference}.",
                hint="Give the one that they were started with as base.",
            )
        return served

    def check_blend(self, adapter: LoraRequest | None) -> None:
        """As `MaterialisedBlends.check`."""
        self._fleet.blends.check(adapter)

    def pin(self, adapter: LoraRequest, pinned: bool) -> None:
        """As `Fleet.pin`."""

        async def pin() -> None:
            self._fleet.pin(adapter, pinned)

        self.loop.run(pin())

    def preload(self, adapter: LoraRequest) -> None:
        """As `Fleet.preload`."""
        self.loop.run(self.runner.preload(adapter))

    def unload(self, adapter: LoraRequest) -> None:
        """As `Fleet.unload`."""
        self.loop.run(self._fleet.unload(adapter))

    def drain(self, url: str, draining: bool) -> None:
        """As `Fleet.drain`."""

        async def drain() -> None:
            self._fleet.drain(url, draining)

        self.loop.run(drain())

    def replicas(self) -> tuple[ReplicaState, ...]:
        """As `Fleet.replicas`."""

        async def replicas() -> tuple[ReplicaState, ...]:
            return self._fleet.replicas()

        return self.loop.run(replicas())

    def close(self) -> None:
        """Ends what runs, all connections, and the thread; once."""

        async def close() -> None:
            await self.runner.aclose()
            await self._fleet.aclose()

        if os.getpid() == self._process_id:  # a forked process has no such thread
            self.loop.close(close())


def split_urls(urls: str | Sequence[str]) -> list[str]:
    """The URLs in a list, or in a text that separates them by commas.

    Raises:
        ConfigError: There is none, or one comes twice.
    """
    parts = urls.split(",") if isinstance(urls, str) else list(urls)
    found = [part.strip() for part in parts if part.strip()]
    if not found:
        raise ConfigError("No URL of a vLLM server was given.", hint="It is like http://host:8000.")
    return found


async def _clients(urls: Sequence[str], api_key: str | None, timeouts: Timeouts | None) -> list[VLLMClient]:
    clients = [VLLMClient(url, api_key=api_key, timeouts=timeouts) for url in urls]
    if len({client.url for client in clients}) < len(clients):
        raise ConfigError("The URL of a vLLM server was given twice.")
    return clients


async def _aclose(clients: Sequence[VLLMClient]) -> None:
    for client in clients:
        await client.aclose()


async def _served_models(clients: Sequence[VLLMClient]) -> list[ServedModels]:
    """What the servers that answer serve, at least one of them."""
    answers = await asyncio.gather(*(client.models() for client in clients), return_exceptions=True)
    models = [answer for answer in answers if isinstance(answer, ServedModels)]
    errors = [answer for answer in answers if isinstance(answer, BaseException)]
    for error in errors:
        if not models or not isinstance(error, AdapterHubError):
            raise error
    roots = sorted({served.root for served in models})  # names may differ: each lease has its server's
    if len(roots) > 1:
        raise ConfigError(
            f"The vLLM servers have different bases: {', '.join(roots)}.",
            hint="Start all of them with the same --model, or connect one hub to each.",
        )
    return models


async def _fleet(
    clients: Sequence[VLLMClient],
    registry: AdapterRegistry | None,
    adapters_at: str | Path | None,
    limits: FleetLimits | None,
) -> tuple[Fleet, SequenceRunner]:
    fleet = Fleet(clients, registry=registry, adapters_at=adapters_at, limits=limits)
    return fleet, SequenceRunner(fleet)


def _base_of_server(root: str, revision: str | None) -> ServedBase:
    try:
        return load_served_base(root, revision=revision)
    except ConfigError as error:
        raise ConfigError(
            f"The vLLM server's base, {root!r}, is not on this machine.",
            hint="Give base=, a folder or hub id with the same tokenizer and weights.",
        ) from error


def _difference(folder: Path, fingerprint: BaseFingerprint) -> str | None:
    return fingerprint.mismatch(BaseFingerprint.of(folder))
