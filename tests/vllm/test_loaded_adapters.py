"""What one server has loaded: one load at a time, the bound, unloading after draining, and what the server says."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from adapterhub.errors import AdapterIncompatibleError
from adapterhub.vllm.loaded_adapters import LoadedAdapters
from tests.vllm.simulated import SimulatedServer
from tests.vllm.virtual_time import in_virtual_time

HERE = Path("/registry")


async def loaded(*names: str, maximum: int = 3, pinned: set[str] | None = None) -> LoadedAdapters:
    server = SimulatedServer("http://replica")
    adapters = LoadedAdapters(server, maximum, pinned or set())
    for name in names:
        await adapters.load(name, HERE)
    return adapters


def server_of(adapters: LoadedAdapters) -> SimulatedServer:
    server = adapters._loader
    assert isinstance(server, SimulatedServer)
    return server


@in_virtual_time
async def test_the_least_recently_used_makes_room():
    adapters = await loaded("a", "b", "c")
    with adapters.using("a"):
        pass
    await adapters.load("d", HERE)
    assert adapters.names == ("c", "a", "d")
    await asyncio.sleep(1)
    assert set(server_of(adapters).loaded) == {"a", "c", "d"}
    assert not adapters.has_room


@in_virtual_time
async def test_what_is_used_or_pinned_does_not_make_room():
    adapters = await loaded("a", "b", "c", pinned={"a"})
    with adapters.using("b"):
        await adapters.load("d", HERE)
        assert set(adapters.names) == {"a", "b", "d"}
        with adapters.using("d"):
            await adapters.load("e", HERE)  # more than the maximum, rather than an error
            assert set(adapters.names) == {"a", "b", "d", "e"}
    await adapters.load("f", HERE)
    assert "a" in adapters
    assert len(adapters.names) == 3


@in_virtual_time
async def test_retired_while_used_it_is_unloaded_when_the_last_request_ends():
    adapters = await loaded("a")
    server = server_of(adapters)
    with adapters.using("a"):
        with adapters.using("a"):
            await adapters.unload("a")
        await asyncio.sleep(1)
        assert "a" in server.loaded
    await asyncio.sleep(1)
    assert server.unloads == {"a": 1}
    assert "a" not in adapters


@in_virtual_time
async def test_a_new_request_keeps_what_was_retired():
    adapters = await loaded("a")
    with adapters.using("a"):
        adapters.retire("a")
        second = adapters.using("a")
        second.__enter__()
    await asyncio.sleep(1)
    second.__exit__(None, None, None)
    await asyncio.sleep(1)
    assert "a" in adapters
    assert not server_of(adapters).unloads


@in_virtual_time
async def test_a_load_waits_for_the_unload_that_runs():
    adapters = await loaded("a")
    server = server_of(adapters)
    adapters.retire("a")
    await adapters.load("a", HERE)
    assert (server.loads["a"], server.unloads["a"]) == (2, 1)
    assert "a" in server.loaded


@in_virtual_time
async def test_retired_while_it_is_loaded_it_is_unloaded_then():
    adapters = await loaded()
    server = server_of(adapters)
    load = asyncio.create_task(adapters.load("a", HERE))
    await asyncio.sleep(0.05)
    adapters.retire("a")
    await load
    await asyncio.sleep(1)
    assert server.loaded == {}
    assert "a" not in adapters


@in_virtual_time
async def test_a_load_that_failed_left_nothing_behind():
    adapters = await loaded()
    server_of(adapters).refuses = {"a"}
    with pytest.raises(AdapterIncompatibleError):
        await adapters.load("a", HERE)
    assert not adapters.expects("a")
    assert adapters.loads == 0


@in_virtual_time
async def test_an_unload_that_failed_is_logged_and_what_the_server_still_has_is_known_again(
    caplog: pytest.LogCaptureFixture,
):
    adapters = await loaded("a")
    server = server_of(adapters)
    server.kill()
    await adapters.unload("a")
    assert [record.getMessage()[:22] for record in caplog.records] == ["a may still be loaded:"]
    assert "a" not in adapters
    server.up = True
    adapters.asking()
    adapters.learn(server.loaded)
    assert "a" in adapters


@in_virtual_time
async def test_what_the_server_says_is_the_truth():
    adapters = await loaded("a", "b")
    adapters.asking()
    adapters.learn(["b", "c"])
    assert set(adapters.names) == {"b", "c"}


@in_virtual_time
async def test_what_changed_while_the_server_was_asked_is_known_better_here():
    adapters = await loaded("a", "b")
    adapters.asking()
    await adapters.load("c", HERE)
    adapters.retire("b")
    adapters.learn(["a", "b"])  # as it was before
    assert set(adapters.names) == {"a", "c"}
    await asyncio.sleep(1)
    adapters.asking()
    adapters.learn([])
    assert adapters.names == ()


@in_virtual_time
async def test_which_have_been_unused_for_some_time():
    adapters = await loaded("a", "b")
    now = asyncio.get_running_loop().time()
    await asyncio.sleep(10)
    with adapters.using("a"):
        assert adapters.unused_since(now + 1) == ["b"]
    assert adapters.unused_since(now + 1) == ["b"]
    assert set(adapters.unused_since(now + 11)) == {"a", "b"}
