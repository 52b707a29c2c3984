"""Leases: which server a request gets, with its adapter loaded."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapterhub.errors import (
    AdapterIncompatibleError,
    AdapterInvalidError,
    CapacityError,
    ConfigError,
    EngineClosedError,
    InvalidRequestError,
)
from adapterhub.registry import AdapterRegistry
from adapterhub.vllm.fleet import Fleet, FleetLimits
from adapterhub.vllm.unavailable import AdapterNotLoadedError, ReplicaUnavailableError
from tests.vllm.fleets import ask, name_of, servers, serving, stored_files
from tests.vllm.simulated import SimulatedServer, stored
from tests.vllm.virtual_time import in_virtual_time

SQL, JSON = stored("sql"), stored("json")
NAME = name_of(SQL)


@in_virtual_time
async def test_a_request_has_its_adapter_loaded_under_a_name_with_its_digest():
    (server,) = replicas = servers(1)
    async with serving(replicas) as fleet:
        async with fleet.lease(SQL) as lease:
            assert lease.model == NAME
            assert server.loaded == {NAME: "/registry/sql/1"}
        async with fleet.lease(None) as lease:
            assert lease.model == "demo"


@in_virtual_time
async def test_requests_that_come_together_share_one_load():
    (server,) = replicas = servers(1)
    async with serving(replicas) as fleet:
        await asyncio.gather(*(ask(fleet, SQL) for _ in range(20)))
    assert server.loads == {NAME: 1}


@in_virtual_time
async def test_a_request_goes_where_its_adapter_is_loaded():
    replicas = servers(3)
    replicas[2].loaded = {NAME: "/registry/sql/1"}
    async with serving(replicas) as fleet:
        assert await ask(fleet, SQL) == replicas[2].url


@in_virtual_time
async def test_full_servers_refuse_with_an_error_that_may_be_retried():
    async with serving(servers(2), max_in_flight=1) as fleet:
        async with fleet.lease(SQL), fleet.lease(SQL):
            with pytest.raises(CapacityError) as caught:
                await ask(fleet, SQL)
            assert caught.value.retryable
        await ask(fleet, SQL)


@in_virtual_time
async def test_a_load_that_fails_fails_all_who_wait_for_it_and_is_tried_again():
    (server,) = replicas = servers(1)
    server.refuses = {NAME}
    async with serving(replicas) as fleet:
        results = await asyncio.gather(*(ask(fleet, SQL) for _ in range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [AdapterIncompatibleError] * 3
        server.refuses = set()
        await ask(fleet, SQL)
        assert fleet.replicas()[0].ready


@in_virtual_time
async def test_a_request_that_is_cancelled_while_its_adapter_is_loaded_ends_nobody_elses():
    (server,) = replicas = servers(1)
    async with serving(replicas) as fleet:
        first, second = asyncio.create_task(ask(fleet, SQL)), asyncio.create_task(ask(fleet, SQL))
        await asyncio.sleep(0.05)
        first.cancel()
        await second
        assert server.loads.total() == 1
        assert fleet.replicas()[0].in_flight == 0


@in_virtual_time
async def test_a_server_that_is_gone_gets_no_requests_until_it_is_back():
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


@in_virtual_time
async def test_no_server_at_all_is_an_error_that_may_be_retried():
    replicas = servers(2)
    for server in replicas:
        server.kill()
    async with serving(replicas) as fleet:
        with pytest.raises(ReplicaUnavailableError, match="replica-1") as caught:
            await ask(fleet, SQL)
        assert caught.value.retryable


@in_virtual_time
async def test_after_closing_there_are_no_leases():
    replicas = servers(1)
    async with serving(replicas) as fleet:
        await ask(fleet, SQL)
    assert replicas[0].closed
    with pytest.raises(EngineClosedError):
        await ask(fleet, SQL)


@in_virtual_time
async def test_the_base_is_answered_under_the_servers_name_for_it():
    async with serving(servers(1)) as fleet, fleet.lease(None) as lease:
        assert lease.model == "demo"


@in_virtual_time
async def test_a_version_that_replaces_another_has_a_name_of_its_own_and_running_answers_keep_theirs():
    (server,) = replicas = servers(1)
    async with serving(replicas) as fleet:
        async with fleet.lease(stored("sql", 1)) as old:
            answer = asyncio.create_task(_all(server, old.model))
            await asyncio.sleep(0.5)
            await fleet.unload(stored("sql", 1))  # as after an alias was moved
            async with fleet.lease(stored("sql", 2)) as new:
                assert new.model.startswith("sql--v2-")
            assert await answer == [old.model] * 2
            assert old.model in server.loaded
        await asyncio.sleep(1)
        assert set(server.loaded) == {new.model}


async def _all(server: SimulatedServer, model: str) -> list[str]:
    return [part async for part in server.answer(model, 2.0)]


@in_virtual_time
async def test_a_server_that_forgot_an_adapter_is_told_to_load_it_again():
    (server,) = replicas = servers(1)
    async with serving(replicas) as fleet:
        await ask(fleet, SQL)
        server.start()  # restarted, before anyone has noticed
        with pytest.raises(ReplicaUnavailableError):
            await ask(fleet, SQL)
        await ask(fleet, SQL)  # what the engine does
        assert server.loads[NAME] == 2
        assert fleet.replicas()[0].failures == 0


@in_virtual_time
async def test_a_failure_that_ends_many_requests_counts_once():
    (server,) = replicas = servers(1)
    async with serving(replicas) as fleet:
        requests = [asyncio.create_task(ask(fleet, SQL)) for _ in range(20)]
        await asyncio.sleep(0.5)
        server.kill()
        results = await asyncio.gather(*requests, return_exceptions=True)
        assert {type(result) for result in results} == {ReplicaUnavailableError}
        server.start()
        await asyncio.sleep(1)
        await ask(fleet, SQL)  # at once: no long delay has added up


@in_virtual_time
async def test_a_lease_waits_for_the_probe_after_a_first_failure():
    (server,) = replicas = servers(1)
    async with serving(replicas) as fleet:
        await ask(fleet, SQL)
        with pytest.raises(ReplicaUnavailableError):
            async with fleet.lease(SQL):
                raise ReplicaUnavailableError("The connection was reset.")
        assert not fleet.replicas()[0].ready
        await ask(fleet, SQL)
        assert server.probes == 2


@in_virtual_time
async def test_a_server_that_answers_with_another_model_gets_no_more_requests():
    async with serving(servers(1)) as fleet:
        async with fleet.lease(SQL) as lease:
            lease.check_model(NAME)
        with pytest.raises(ReplicaUnavailableError, match="another model"):
            async with fleet.lease(SQL) as lease:
                lease.check_model(name_of(JSON))
        assert not fleet.replicas()[0].ready


@in_virtual_time
async def test_a_draining_server_ends_what_it_has_and_gets_nothing_new():
    replicas = servers(2)
    async with serving(replicas) as fleet:
        async with fleet.lease(SQL) as lease:
            url = lease.client.url
            fleet.drain(url)
            drained = asyncio.create_task(fleet.drained(url))
            assert {await ask(fleet, SQL) for _ in range(3)} == {server.url for server in replicas} - {url}
            assert not drained.done()
        await drained
        state = next(state for state in fleet.replicas() if state.url == url)
        assert (state.ready, state.reason, state.draining) == (False, "draining", True)
        fleet.drain(url, False)
        assert next(state for state in fleet.replicas() if state.url == url).ready


@in_virtual_time
async def test_draining_a_server_that_is_none_of_the_fleet():
    async with serving(servers(2)) as fleet:
        with pytest.raises(InvalidRequestError, match="replica-1"):
            fleet.drain("http://elsewhere")


@in_virtual_time
async def test_adapters_are_where_the_servers_have_mounted_the_registry(tmp_path: Path):
    registry = AdapterRegistry(tmp_path)
    folder = registry.root / "sql" / "1"
    adapter = replace(SQL, folder=folder)
    (server,) = replicas = servers(1)
    async with serving(replicas, registry=registry, adapters_at="/mnt/adapters") as fleet:
        async with fleet.lease(adapter):
            assert server.loaded == {NAME: "/mnt/adapters/sql/1"}
        with pytest.raises(ConfigError, match="not in the registry"):
            await ask(fleet, JSON)


@in_virtual_time
async def test_settings_of_a_fleet_are_checked(tmp_path: Path):
    registry = AdapterRegistry(tmp_path)
    with pytest.raises(ConfigError, match="one server or more"):
        Fleet([])
    with pytest.raises(ConfigError, match="each of them once"):
        Fleet([*servers(1), *servers(1)])
    with pytest.raises(ConfigError, match="needs a registry"):
        Fleet(servers(1), adapters_at="/mnt")
    with pytest.raises(ConfigError, match="absolute"):
        Fleet(servers(1), registry=registry, adapters_at="mnt")
    with pytest.raises(ConfigError):
        FleetLimits(max_in_flight=0)


@pytest.mark.parametrize(
    ("config", "reason", "remedy"),
    [
        ({"use_dora": True}, "DoRA", "adapterhub export NAME OUT .*--dora svd"),
        ({"r": 1024}, "its rank is 1024, above 512", "adapterhub export NAME OUT .*--rank 512"),
    ],
    ids=["dora", "rank"],
)
@in_virtual_time
async def test_what_vllm_does_not_run_is_refused_before_a_server_is_asked(
    tmp_path: Path, config: dict[str, Any], reason: str, remedy: str
):
    (server,) = replicas = servers(1)
    async with serving(replicas) as fleet:
        with pytest.raises(
            AdapterIncompatibleError, match=f"^sql@1 does not run on vllm: .*{reason}"
        ) as caught:
            await ask(fleet, stored_files(tmp_path, **config))
        assert caught.value.hint
        assert re.search(remedy, caught.value.hint)
        assert fleet.replicas()[0].ready
        assert await ask(fleet, JSON) == server.url
    assert list(server.loads) == [name_of(JSON)]


@in_virtual_time
async def test_a_pinned_adapter_that_vllm_does_not_run_is_never_sent(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (server,) = replicas = servers(1)
    async with serving(replicas) as fleet:
        fleet.pin(stored_files(tmp_path, use_dora=True))
        fleet.pin(JSON)
        await asyncio.sleep(1)
        assert fleet.replicas()[0].adapters == (name_of(JSON),)
    assert list(server.loads) == [name_of(JSON)]
    assert "sql@1 does not run on vllm" in caplog.text


@in_virtual_time
async def test_the_files_of_an_adapter_are_read_for_its_load_only(tmp_path: Path):
    (server,) = replicas = servers(1)
    adapter = stored_files(tmp_path)
    async with serving(replicas) as fleet:
        await ask(fleet, adapter)
        (adapter.folder / "adapter_config.json").write_text("damaged")
        assert await ask(fleet, adapter) == server.url
        server.loaded.clear()
        with pytest.raises(AdapterNotLoadedError):
            await ask(fleet, adapter)
        with pytest.raises(AdapterInvalidError):
            await ask(fleet, adapter)
