"""Many adapters on servers that die and come back at random: what requests get, and how often adapters are loaded."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import mean

import pytest

from adapterhub.errors import AdapterHubError
from adapterhub.fleet import ReplicaLoad
from adapterhub.lora.request import StoredLoraRequest
from adapterhub.vllm import fleet as fleet_module
from adapterhub.vllm.adapter_names import AdapterName
from adapterhub.vllm.fleet import Fleet, FleetLimits
from adapterhub.vllm.unavailable import ReplicaUnavailableError
from tests.vllm.simulated import SimulatedServer, stored
from tests.vllm.virtual_time import run

ADAPTERS, REQUESTS, REQUESTS_PER_SECOND, TRIES = 200, 2000, 40.0, 3
SEEDS = range(3)
LIMITS = FleetLimits(max_in_flight=64, max_adapters=64)


def at_random(replicas: Sequence[ReplicaLoad], adapter: str | None, **_: float) -> list[ReplicaLoad]:
    """The choice of a load balancer that knows no adapters."""
    free = [replica for replica in replicas if replica.in_flight < replica.max_in_flight]
    return random.sample(free, len(free))


@dataclass
class Outcome:
    """What became of all requests.

    Attributes:
        right: Answered by the adapter that was asked for.
        wrong: Answered by another one.
        errors: How many ended with an error.
        loads: Of all servers together.
    """

    right: int
    wrong: int
    errors: int
    loads: int


async def ask(fleet: Fleet, adapter: StoredLoraRequest, seconds: float) -> str:
    """Sends a request, again while it has no output, as the engine does; the name of the model that answered."""
    for tries_left in reversed(range(TRIES)):
        models: list[str] = []
        try:
            async with fleet.lease(adapter) as lease:
                async for model in lease.client.answer(lease.model, seconds):
                    models = [*models, model]
            assert len(set(models)) == 1
            return models[0]
        except ReplicaUnavailableError:
            if models or not tries_left:
                raise
    raise AssertionError


async def die_and_come_back(server: SimulatedServer, chance: random.Random) -> None:
    while True:
        await asyncio.sleep(chance.expovariate(1 / 60))
        server.kill()
        await asyncio.sleep(chance.expovariate(1 / 3))
        server.start()


async def traffic(seed: int, *, faults: bool) -> Outcome:
    chance = random.Random(seed)
    servers = [SimulatedServer(f"http://replica-{i}") for i in range(3)]
    fleet = Fleet(servers, limits=LIMITS)
    deaths = [asyncio.create_task(die_and_come_back(server, chance)) for server in servers if faults]
    adapters = [stored(f"adapter-{i}") for i in range(ADAPTERS)]
    asked = chance.choices(adapters, [1 / (rank + 1) for rank in range(ADAPTERS)], k=REQUESTS)  # Zipf
    requests = []
    for adapter in asked:
        await asyncio.sleep(chance.expovariate(REQUESTS_PER_SECOND))
        requests.append(asyncio.create_task(ask(fleet, adapter, chance.uniform(0.2, 2))))
    results = await asyncio.gather(*requests, return_exceptions=True)
    for death in deaths:
        death.cancel()
    assert all(state.in_flight == 0 for state in fleet.replicas())
    await fleet.aclose()
    expected = [str(AdapterName.of(adapter.name, adapter.digest)) for adapter in asked]
    errors = [result for result in results if isinstance(result, BaseException)]
    assert all(isinstance(error, AdapterHubError) and error.retryable for error in errors), errors
    right = sum(result == name for result, name in zip(results, expected, strict=True))
    return Outcome(
        right=right,
        wrong=REQUESTS - right - len(errors),
        errors=len(errors),
        loads=sum(server.loads.total() for server in servers),
    )


@cache
def outcome(seed: int, *, faults: bool) -> Outcome:
    """That of by_affinity; it checks what errors there were."""
    return run(traffic(seed, faults=faults))


def test_every_request_ends_once_right_or_with_an_error_that_may_be_retried():
    for seed in SEEDS:
        assert outcome(seed, faults=True).wrong == 0
        assert outcome(seed, faults=True).right > 0.9 * REQUESTS


def test_without_faults_every_request_is_answered():
    assert outcome(0, faults=False).right == REQUESTS


@pytest.mark.parametrize("faults", [True, False])
def test_affinity_halves_the_loads_of_routing_at_random(monkeypatch: pytest.MonkeyPatch, faults: bool):
    by_affinity = mean(outcome(seed, faults=faults).loads for seed in SEEDS)
    monkeypatch.setattr(fleet_module, "by_affinity", at_random)
    random.seed(0)
    randomly = mean(run(traffic(seed, faults=faults)).loads for seed in SEEDS)
    print(f"loads by affinity {by_affinity:.0f}, at random {randomly:.0f}; servers die: {faults}")
    assert by_affinity <= randomly / 2
