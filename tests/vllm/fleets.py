"""Fleets of simulated servers, and requests to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from adapterhub.lora.request import LoraRequest, StoredLoraRequest
from adapterhub.registry import AdapterRegistry
from adapterhub.vllm.adapter_names import AdapterName
from adapterhub.vllm.fleet import Fleet, FleetLimits
from tests.vllm.simulated import SimulatedServer


def name_of(adapter: StoredLoraRequest) -> str:
    return str(AdapterName.of(adapter.name, adapter.digest))


def servers(count: int) -> list[SimulatedServer]:
    return [SimulatedServer(f"http://replica-{i}") for i in range(count)]


@asynccontextmanager
async def serving(
    replicas: Sequence[SimulatedServer],
    *,
    registry: AdapterRegistry | None = None,
    adapters_at: str | None = None,
    **limits: float,
) -> AsyncIterator[Fleet]:
    limits_of_each = FleetLimits(**limits)  # type: ignore[arg-type]
    fleet = Fleet(replicas, registry=registry, adapters_at=adapters_at, limits=limits_of_each)  # type: ignore[arg-type]
    try:
        yield fleet
    finally:
        await fleet.aclose()


async def ask(fleet: Fleet, adapter: LoraRequest | None, seconds: float = 1.0) -> str:
    """Sends one request; the URL of the server that answered."""
    async with fleet.lease(adapter) as lease:
        assert [model async for model in lease.client.answer(lease.model, seconds)] == [lease.model] * 2
        return lease.client.url
