"""Leases: which server a request gets, with its adapter loaded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from adapterhub.errors import AdapterIncompatibleError, CapacityError, EngineClosedError, InvalidRequestError
from adapterhub.lora.request import BlendedLoraRequest, LoraRequest
from adapterhub.vllm.fleet import Fleet, FleetLimits
from adapterhub.vllm.unavailable import ReplicaUnavailableError
from tests.vllm.simulated import SimulatedServer, stored
from tests.vllm.virtual_time import run

SQL, JSON = stored("sql"), stored("json")
NAME = f"sql--v1-{SQL.digest.removeprefix('sha256:')[:8]}"


def servers(count: int) -> list[SimulatedServer]:
    return [SimulatedServer(f"http://replica-{i}") for i in range(count)]


@asynccontextmanager
async def serving(replicas: Sequence[SimulatedServer], **limits: float) -> AsyncIterator[Fleet]:
    fleet = Fleet(replicas, limits=FleetLimits(**limits))  # type: ignore[arg-type]
    try:
        yield fleet
    finally:
        await fleet.aclose()


async def ask(fleet: Fleet, adapter: LoraRequest | None, seconds: float = 1.0) -> str:
    """Sends one request; the URL of the server that answered."""
    async with fleet.lease(adapter) as lease:
        assert isinstance(lease.client, SimulatedServer)
        assert [model async for model in lease.client.answer(lease.model, seconds)] == [lease.model] * 2
        return lease.client.url


def test_a_request_has_its_adapter_loaded_under_a_name_with_its_digest():
    async def main() -> None:
        (server,) = replicas = servers(1)
        async with serving(replicas) as fleet:
            async with fleet.lease(SQL) as lease:
                assert lease.model == NAME
                assert server.loaded == {NAME: "/registry/sql/1"}
            async with fleet.lease(None) as lease:
                assert lease.model == "demo"

    run(main())


def test_requests_that_come_together_share_one_load():
    async def main() -> None:
        (server,) = replicas = servers(1)
        async with serving(replicas) as fleet:
            await asyncio.gather(*(ask(fleet, SQL) for _ in range(20)))
        assert server.loads == {NAME: 1}

    run(main())


def test_a_request_goes_where_its_adapter_is_loaded():
    async def main() -> None:
        replicas = servers(3)
        replicas[2].loaded = {NAME: "/registry/sql/1"}
        async with serving(replicas) as fleet:
            assert await ask(fleet, SQL) == replicas[2].url

    run(main())


def test_full_servers_refuse_with_an_error_that_may_be_retried():
    async def main() -> None:
        async with serving(servers(2), max_in_flight=1) as fleet:
            async with fleet.lease(SQL), fleet.lease(SQL):
                with pytest.raises(CapacityError) as caught:
                    await ask(fleet, SQL)
                assert caught.value.retryable
            await ask(fleet, SQL)

    run(main())


def test_a_load_that_fails_fails_all_who_wait_for_it_and_is_tried_again():
    async def main() -> None:
        (server,) = replicas = servers(1)
        server.refuses = {NAME}
        async with serving(replicas) as fleet:
            results = await asyncio.gather(*(ask(fleet, SQL) for _ in range(3)), return_exceptions=True)
            assert [type(result) for result in results] == [AdapterIncompatibleError] * 3
            server.refuses = set()
            await ask(fleet, SQL)
            assert fleet.replicas()[0].ready

    run(main())


def test_a_request_that_is_cancelled_while_its_adapter_is_loaded_ends_nobody_elses():
    async def main() -> None:
        (server,) = replicas = servers(1)
        async with serving(replicas) as fleet:
            first, second = asyncio.create_task(ask(fleet, SQL)), asyncio.create_task(ask(fleet, SQL))
            await asyncio.sleep(0.05)
            first.cancel()
            await second
            assert server.loads.total() == 1
            assert fleet.replicas()[0].in_flight == 0

    run(main())


def test_a_blend_is_refused():
    async def main() -> None:
        async with serving(servers(1)) as fleet:
            with pytest.raises(InvalidRequestError, match="add_weighted_adapter"):
                await ask(fleet, BlendedLoraRequest.of("both", [(SQL, 0.5), (JSON, 0.5)]))

    run(main())


def test_a_server_that_is_gone_gets_no_requests_until_it_is_back():
    async def main() -> None:
        replicas = servers(2)
        async with serving(replicas) as fleet:
            url = await ask(fleet, SQL)
            dead = next(server for server in replicas if server.url == url)
            dead.kill()
            with pytest.raises(ReplicaUnavailableError):
                await ask(fleet, SQL)
            assert await ask(fleet, SQL) != url
            dead.start()
            await asyncio.sleep(11)
            state = next(state for state in fleet.replicas() if state.url == url)
            assert (state.ready, state.adapters, state.started_at) == (True, (), 2.0)

    run(main())


def test_no_server_at_all_is_an_error_that_may_be_retried():
    async def main() -> None:
        replicas = servers(2)
        for server in replicas:
            server.kill()
        async with serving(replicas) as fleet:
            with pytest.raises(ReplicaUnavailableError, match="replica-1") as caught:
                await ask(fleet, SQL)
            assert caught.value.retryable

    run(main())


def test_after_closing_there_are_no_leases():
    async def main() -> None:
        replicas = servers(1)
        async with serving(replicas) as fleet:
            await ask(fleet, SQL)
        assert replicas[0].closed
        with pytest.raises(EngineClosedError):
            await ask(fleet, SQL)

    run(main())
