"""Servers are kept in line with what is wanted, with the registry, and with the truth of `/v1/models`."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from adapterhub.errors import AdapterIncompatibleError, CapacityError, RegistryError
from adapterhub.lora.request import StoredLoraRequest
from adapterhub.registry import AdapterCard, AdapterRegistry
from tests.registry.maker import make_adapter
from tests.vllm.fleets import ask, name_of, servers, serving
from tests.vllm.simulated import SimulatedServer, stored
from tests.vllm.virtual_time import in_virtual_time

SQL, JSON = stored("sql"), stored("json")
SYNC = 11  # seconds, more than `sync_seconds`


@pytest.fixture
def registry(tmp_path: Path) -> AdapterRegistry:
    return AdapterRegistry(tmp_path / "registry")


def register(registry: AdapterRegistry, name: str, folder: Path, seed: int) -> StoredLoraRequest:
    return request_of(registry, registry.register(name, make_adapter(folder / f"{name}-{seed}", seed=seed)))


def request_of(registry: AdapterRegistry, card: AdapterCard) -> StoredLoraRequest:
    return StoredLoraRequest(card.ref, card.digest, registry.folder(card))


def holders(replicas: list[SimulatedServer], adapter: StoredLoraRequest) -> int:
    return sum(name_of(adapter) in server.loaded for server in replicas)


@in_virtual_time
async def test_a_preloaded_adapter_is_on_one_server_and_requests_go_there():
    replicas = servers(3)
    async with serving(replicas) as fleet:
        await fleet.preload(SQL)
        await asyncio.sleep(SYNC)
        assert holders(replicas, SQL) == 1
        holder = next(server for server in replicas if server.loaded)
        assert await ask(fleet, SQL) == holder.url
        assert sum(server.loads.total() for server in replicas) == 1


@in_virtual_time
async def test_a_preloaded_adapter_is_loaded_again_after_a_restart():
    replicas = servers(3)
    async with serving(replicas) as fleet:
        await fleet.preload(SQL)
        await asyncio.sleep(SYNC)
        for server in replicas:
            server.start()
        await asyncio.sleep(SYNC)
        assert holders(replicas, SQL) == 1


@in_virtual_time
async def test_a_preloaded_adapter_moves_while_its_server_is_down():
    replicas = servers(2)
    async with serving(replicas) as fleet:
        await fleet.preload(SQL)
        holder = next(server for server in replicas if server.loaded)
        holder.kill()
        await asyncio.sleep(2 * SYNC)
        (other,) = (server for server in replicas if server is not holder)
        assert name_of(SQL) in other.loaded


@in_virtual_time
async def test_a_pinned_adapter_is_on_all_servers_and_stays_there():
    replicas = servers(3)
    async with serving(replicas, max_adapters=2) as fleet:
        fleet.pin(SQL)
        await fleet.preload(SQL)
        await asyncio.sleep(1)
        assert holders(replicas, SQL) == 3
        for i in range(20):
            await ask(fleet, stored(f"other-{i}"))
        replicas[0].start()
        await asyncio.sleep(SYNC)
        assert holders(replicas, SQL) == 3
        fleet.pin(SQL, False)
        for i in range(20):
            await ask(fleet, stored(f"another-{i}"))
        assert holders(replicas, SQL) < 3


@in_virtual_time
async def test_pins_leave_room_for_other_adapters():
    async with serving(servers(1), max_adapters=2) as fleet:
        fleet.pin(SQL)
        fleet.pin(SQL)
        with pytest.raises(CapacityError, match="max_adapters"):
            fleet.pin(JSON)


@in_virtual_time
async def test_preloading_what_no_server_can_load_is_an_error_and_is_not_tried_again():
    (server,) = replicas = servers(1)
    server.refuses = {name_of(SQL)}
    async with serving(replicas) as fleet:
        with pytest.raises(AdapterIncompatibleError):
            await fleet.preload(SQL)
        server.refuses = set()
        await asyncio.sleep(SYNC)
        assert server.loaded == {}


@in_virtual_time
async def test_unloaded_it_is_loaded_nowhere_until_it_is_asked_for():
    replicas = servers(2)
    async with serving(replicas) as fleet:
        fleet.pin(SQL)
        await asyncio.sleep(SYNC)
        await fleet.unload(SQL)
        assert holders(replicas, SQL) == 0
        await asyncio.sleep(SYNC)
        assert holders(replicas, SQL) == 0
        await ask(fleet, SQL)
        assert holders(replicas, SQL) == 1


@in_virtual_time
async def test_a_pin_that_fails_is_logged_once_and_does_not_stop_the_others(caplog: pytest.LogCaptureFixture):
    (server,) = replicas = servers(1)
    server.refuses = {name_of(SQL)}
    async with serving(replicas) as fleet:
        fleet.pin(SQL)
        fleet.pin(JSON)
        with caplog.at_level(logging.WARNING, "adapterhub"):
            await asyncio.sleep(5 * SYNC)
        assert [record.getMessage().count(name_of(SQL)) for record in caplog.records] == [1]
        assert holders(replicas, JSON) == 1
        assert fleet.replicas()[0].ready


@in_virtual_time
async def test_only_what_the_registry_once_had_is_unloaded(registry: AdapterRegistry, tmp_path: Path):
    kept, gone = (register(registry, name, tmp_path, 1) for name in ("kept", "gone"))
    (server,) = replicas = servers(1)
    server.loaded = {"theirs": "/x", "their--v2": "/y"}
    async with serving(replicas, registry=registry) as fleet:
        await ask(fleet, kept)
        await ask(fleet, gone)
        registry.remove("gone")
        await asyncio.sleep(SYNC)
        assert set(server.loaded) == {"theirs", "their--v2", name_of(kept)}


@in_virtual_time
async def test_a_removed_version_is_unloaded_only_after_its_last_request(
    registry: AdapterRegistry, tmp_path: Path
):
    sql = register(registry, "sql", tmp_path, 1)
    (server,) = replicas = servers(1)
    async with serving(replicas, registry=registry) as fleet:
        async with fleet.lease(sql):
            registry.remove("sql")
            await asyncio.sleep(3 * SYNC)
            assert name_of(sql) in server.loaded
        await asyncio.sleep(1)
        assert server.loaded == {}


@in_virtual_time
async def test_a_pinned_version_that_was_removed_or_disabled_is_given_up(
    registry: AdapterRegistry, tmp_path: Path
):
    sql, json = register(registry, "sql", tmp_path, 1), register(registry, "json", tmp_path, 2)
    (server,) = replicas = servers(1)
    async with serving(replicas, registry=registry) as fleet:
        fleet.pin(sql)
        fleet.pin(json)
        await asyncio.sleep(SYNC)
        assert len(server.loaded) == 2
        registry.remove("sql")
        registry.update("json@1", status="disabled")
        await asyncio.sleep(SYNC)
        assert server.loaded == {}


@in_virtual_time
async def test_a_replaced_version_stays_for_a_minute_after_its_last_request(
    registry: AdapterRegistry, tmp_path: Path
):
    old, new = (register(registry, "sql", tmp_path, seed) for seed in (1, 2))
    (server,) = replicas = servers(1)
    async with serving(replicas, registry=registry) as fleet:
        await ask(fleet, old)
        await ask(fleet, new)
        await asyncio.sleep(40)
        await ask(fleet, old)
        await asyncio.sleep(40)
        assert len(server.loaded) == 2
        await asyncio.sleep(40)
        assert set(server.loaded) == {name_of(new)}


@in_virtual_time
async def test_an_old_version_with_an_alias_stays(registry: AdapterRegistry, tmp_path: Path):
    old, new = (register(registry, "sql", tmp_path, seed) for seed in (1, 2))
    registry.alias("sql", "prod", 1)
    (server,) = replicas = servers(1)
    async with serving(replicas, registry=registry) as fleet:
        await ask(fleet, old)
        await ask(fleet, new)
        await asyncio.sleep(200)
        assert len(server.loaded) == 2


@in_virtual_time
async def test_what_another_front_has_loaded_is_used(registry: AdapterRegistry, tmp_path: Path):
    sql = register(registry, "sql", tmp_path, 1)
    replicas = servers(3)
    async with serving(replicas, registry=registry) as fleet:
        await asyncio.sleep(SYNC)
        replicas[1].loaded = {name_of(sql): str(sql.folder)}
        await asyncio.sleep(SYNC)
        assert await ask(fleet, sql) == replicas[1].url
        assert sum(server.loads.total() for server in replicas) == 0


@in_virtual_time
async def test_a_registry_that_cannot_be_read_unloads_nothing(
    registry: AdapterRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sql = register(registry, "sql", tmp_path, 1)
    (server,) = replicas = servers(1)
    async with serving(replicas, registry=registry) as fleet:
        await ask(fleet, sql)
        monkeypatch.setattr(registry, "stamp", _unreadable)
        await asyncio.sleep(3 * SYNC)
        assert name_of(sql) in server.loaded
        await ask(fleet, sql)


def _unreadable() -> tuple[int, ...]:
    raise RegistryError("The registry cannot be read.")


@in_virtual_time
async def test_a_defect_does_not_end_reconciling(monkeypatch: pytest.MonkeyPatch):
    (server,) = replicas = servers(1)
    async with serving(replicas) as fleet:
        await ask(fleet, SQL)
        with monkeypatch.context() as patched:
            patched.setattr(server, "models", lambda: 1 / 0)
            await asyncio.sleep(10 * SYNC)
        assert 10 < server.probes < 25  # less and less, as after failures
        server.start()
        await asyncio.sleep(SYNC)
        assert fleet.replicas()[0].adapters == ()
        await ask(fleet, SQL)


@in_virtual_time
async def test_a_server_that_is_down_is_asked_less_and_less():
    (server,) = replicas = servers(1)
    server.kill()
    async with serving(replicas):
        await asyncio.sleep(100)
        assert 10 < server.probes < 20


@in_virtual_time
async def test_a_server_with_another_base_gets_no_requests():
    same, other = replicas = servers(2)
    other.kill()
    async with serving(replicas) as fleet:
        await ask(fleet, SQL)
        other.start()
        other.base = "/models/other"
        await asyncio.sleep(2 * SYNC)
        assert {await ask(fleet, stored(f"a{i}")) for i in range(10)} == {same.url}
        assert "/models/other" in str(fleet.replicas()[1].reason)
        other.base = same.base
        await asyncio.sleep(2 * SYNC)
        assert fleet.replicas()[1].ready


@in_virtual_time
async def test_a_server_that_goes_away_while_it_is_reconciled_is_reconciled_again(
    registry: AdapterRegistry, tmp_path: Path
):
    sql = register(registry, "sql", tmp_path, 1)
    (server,) = replicas = servers(1)
    async with serving(replicas, registry=registry) as fleet:
        await fleet.preload(sql)
        server.load_seconds = 5.0
        server.start()
        await asyncio.sleep(SYNC)
        server.kill()  # in the middle of the load, or of a pause
        await asyncio.sleep(SYNC)
        server.load_seconds = 0.1
        server.start()
        await asyncio.sleep(2 * SYNC)
        assert name_of(sql) in server.loaded
        await ask(fleet, sql)
