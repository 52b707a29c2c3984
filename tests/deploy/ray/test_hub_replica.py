"""What Ray asks of a replica, without a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

pytest.importorskip("ray", reason="Ray is not installed: `make test-ray` installs it")

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.deploy.ray import ApplicationConfig
from adapterhub.deploy.ray.hub_replica import HubReplica
from adapterhub.engine.interface import Completion, Request
from adapterhub.engine.stats import AdapterStats, EngineStats
from adapterhub.errors import CapacityError

OpenHub = Callable[[ApplicationConfig], AdapterHub]


class Engine(EchoEngine):
    """Refuses everything while it is full, and has the statistics that a test gives it."""

    is_full = False
    steps = asked = 0
    adapters: Mapping[str, AdapterStats] = MappingProxyType({})

    async def agenerate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Counts, and answers or refuses."""
        self.asked += 1
        if self.is_full:
            raise CapacityError("The queue is full.")
        return await super().agenerate(requests)

    def stats(self) -> EngineStats:
        """As set."""
        return replace(super().stats(), steps=self.steps, adapters=self.adapters)


async def started(config: ApplicationConfig, open_hub: OpenHub) -> HubReplica:
    """As Ray makes it."""
    replica = HubReplica.__new__(HubReplica)
    await replica.__init__(config, open_hub)  # type: ignore[misc]
    return replica


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
async def replica(engine: Engine, tmp_path: Path) -> HubReplica:
    return await started(
        ApplicationConfig(engine="echo"), lambda _: AdapterHub(engine, AdapterRegistry(tmp_path))
    )


async def test_an_idle_replica_is_asked_for_a_token(engine: Engine, replica: HubReplica):
    before = engine.asked
    await replica.check_health()
    assert engine.asked == before + 1


async def test_a_busy_replica_is_healthy_though_it_takes_no_more(engine: Engine, replica: HubReplica):
    engine.is_full = True
    for _ in range(3):
        engine.steps += 1
        await replica.check_health()


async def test_a_replica_that_neither_computes_nor_answers_is_not_healthy(
    engine: Engine, replica: HubReplica
):
    engine.is_full = True
    for _ in range(3):
        with pytest.raises(CapacityError):
            await replica.check_health()


async def test_a_hub_over_vllm_servers_is_not_asked(engine: Engine, tmp_path: Path):
    config = ApplicationConfig(engine="http://127.0.0.1:1")
    replica = await started(config, lambda _: AdapterHub(engine, AdapterRegistry(tmp_path)))
    before = engine.asked
    await replica.check_health()
    assert engine.asked == before


async def test_the_router_is_told_which_adapters_are_loaded(engine: Engine, replica: HubReplica):
    engine.adapters = {
        "sql@1": AdapterStats(in_host_memory=True),
        "sql@2": AdapterStats(),
        "json@3": AdapterStats(in_slot=True),
        "code@1": AdapterStats(tokens=9),
        "tools@1:0.5+support@1:0.5": AdapterStats(in_slot=True),
        "base": AdapterStats(),
    }
    assert replica.record_routing_stats() == {"adapters": ["json", "sql"]}


async def test_a_replica_that_does_not_get_ready_closes_its_hub(engine: Engine, tmp_path: Path):
    class Hub(AdapterHub):
        is_closed = False

        def generate(self, *args: object, **options: object) -> object:  # type: ignore[override]
            raise CapacityError("There is no memory.")

        def close(self) -> None:
            self.is_closed = True

    hub = Hub(engine, AdapterRegistry(tmp_path))
    replica = HubReplica.__new__(HubReplica)
    with pytest.raises(CapacityError):
        await replica.__init__(ApplicationConfig(engine="echo"), lambda _: hub)  # type: ignore[misc]
    replica.__del__()
    assert hub.is_closed
