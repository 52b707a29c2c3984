"""Fleets of simulated servers, and requests to them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from adapterhub.lora.request import LoraRequest, StoredLoraRequest
from adapterhub.registry import AdapterRegistry
from adapterhub.vllm.adapter_names import AdapterName
from adapterhub.vllm.fleet import Fleet, FleetLimits
from tests.vllm.simulated import SimulatedServer


def name_of(adapter: StoredLoraRequest) -> str:
    return str(AdapterName.of(adapter.name, adapter.digest))


def servers(count: int) -> list[SimulatedServer]:
    return [SimulatedServer(f"http://replica-{i}") for i in range(count)]


def stored_files(folder: Path, name: str = "sql", **config: Any) -> StoredLoraRequest:
    """An adapter whose files are there: a config, and one tensor."""
    folder = folder / name
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8} | config))
    tensor = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": np.zeros((8, 4), np.float32)}
    save_file(tensor, folder / "adapter_model.safetensors")
    return StoredLoraRequest(f"{name}@1", f"sha256:{name.encode().hex():0<64}", folder)


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
