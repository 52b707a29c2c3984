"""A registry outlives the processes that write to it, whenever they die and however many there are."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from adapterhub.registry import AdapterRegistry
from tests.registry.maker import make_adapter


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Fresh processes in milliseconds: copies of one that has imported the registry and nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["adapterhub.registry", "tests.registry.test_faults"])
    return context


def write_without_end(root: Path, adapter: Path, report: Connection) -> None:
    """Does everything that changes a registry, over and over, and reports what it has registered."""
    registry = AdapterRegistry(root)
    while True:
        for name in ("stored", "removed"):
            report.send(registry.register(name, adapter).ref)
        newest = registry.get("stored")
        registry.alias("stored", "prod", newest.version)
        registry.update(newest.ref, description=f"number {newest.version}")
        registry.remove("removed")


def reports(pipe: Connection) -> set[str]:
    refs = set()
    with suppress(EOFError):
        while pipe.poll():
            refs.add(pipe.recv())
    return refs


def killed(processes: ForkServerContext, waits: list[float], root: Path, adapter: Path) -> Iterator[set[str]]:
    """What each of some writers reports that work side by side; each is killed that long after its first report."""
    writers = []
    for _ in waits:
        pipe, end = processes.Pipe(duplex=False)
        writers.append((processes.Process(target=write_without_end, args=(root, adapter, end)), pipe))
        writers[-1][0].start()
        end.close()
    for (process, pipe), wait in zip(writers, waits, strict=True):
        assert pipe.poll(30)
        time.sleep(wait)
        process.kill()
        process.join(30)
    for _, pipe in writers:
        yield reports(pipe)


@pytest.mark.parametrize("rounds", [8, pytest.param(25, marks=pytest.mark.slow)])
def test_four_kills_a_round(processes: ForkServerContext, tmp_path: Path, adapter: Path, rounds: int) -> None:
    registry, chance, given = AdapterRegistry(tmp_path / "registry"), random.Random(0), set[str]()
    start = time.monotonic()
    registry.alias("stored", "prod", registry.register("stored", adapter).version)
    seconds = time.monotonic() - start  # a round of `write_without_end` takes two to three times as long
    for _ in range(rounds):
        for new in killed(
            processes, [chance.uniform(0, 3 * seconds) for _ in range(4)], registry.root, adapter
        ):
            assert new
            assert given.isdisjoint(new), "a number was given twice"
            given |= new
        assert registry.verify() == []
        stored = {card.ref for card in registry.versions("stored")}
        assert {ref for ref in given if ref.startswith("stored")} <= stored
        assert registry.resolve("stored@prod").version <= registry.resolve("stored").version
    assert registry.register("removed", adapter).ref not in given


def register_many(root: Path, folder: Path, writer: int, count: int) -> None:
    registry = AdapterRegistry(root)
    adapter = make_adapter(folder / str(writer), seed=writer)
    for number in range(count):
        registry.register(f"own-{writer}-{number}" if number % 2 else "shared", adapter)


@pytest.mark.parametrize("count", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_eight_processes_register_many_each(processes: ForkServerContext, tmp_path: Path, count: int) -> None:
    registry, folder = AdapterRegistry(tmp_path / "registry"), tmp_path / "adapters"
    crowd = [
        processes.Process(target=register_many, args=(registry.root, folder, writer, count))
        for writer in range(8)
    ]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join(250)
        assert process.exitcode == 0
    # Half of them went under one name, half each under a name of its own.
    assert [card.version for card in registry.versions("shared")] == list(range(1, 4 * count + 1))
    assert len({card.digest for card in registry.versions("shared")}) == 8
    assert len(registry.list()) == 4 * count + 1
    assert registry.verify() == []


def test_threads_register_concurrently(tmp_path: Path, adapter: Path) -> None:
    registry = AdapterRegistry(tmp_path / "registry")
    with ThreadPoolExecutor(8) as pool:
        cards = list(pool.map(lambda _: registry.register("json", adapter), range(40)))
    assert sorted(card.version for card in cards) == list(range(1, 41))
    assert registry.verify() == []


def test_threads_revise_a_card_concurrently(tmp_path: Path, adapter: Path) -> None:
    registry = AdapterRegistry(tmp_path / "registry")
    registry.register("json", adapter)

    def add(tag: str) -> None:
        registry.revise("json", lambda card: {"tags": [*card.tags, tag]})

    tags = [f"tag-{number}" for number in range(30)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, tags))
    assert sorted(registry.get("json").tags) == sorted(tags)


def test_readers_never_see_half_a_version(
    processes: ForkServerContext, tmp_path: Path, adapter: Path
) -> None:
    registry = AdapterRegistry(tmp_path / "registry")
    pipe, end = processes.Pipe(duplex=False)
    process = processes.Process(target=write_without_end, args=(registry.root, adapter, end))
    process.start()
    try:
        assert pipe.poll(30)
        seen = set()
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            card = registry.resolve("stored")
            assert (
                registry.folder(card) / "adapter_model.safetensors"
            ).stat().st_size == card.peft.size_bytes
            seen.add(card.version)
    finally:
        process.kill()
        process.join(30)
    assert len(seen) > 1
