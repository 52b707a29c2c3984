"""What registries of many adapters cost: a folder, and a store in memory, which has no network.

python benchmarks/registry_polling.py [--adapters 1000 10000]

Times are processor time of this process in milliseconds, the best of some calls. A store's network comes on top:
docs/remote-registry.md says how many requests there are.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from fsspec.implementations.memory import MemoryFileSystem

from adapterhub import AdapterCard, AdapterRegistry
from adapterhub.registry.remote import RemoteRegistry, open_registry


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """The best processor time of one call."""
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return 1000 * min(times)


def filled(root: Path, card: AdapterCard, count: int) -> AdapterRegistry:
    """A folder with `count` adapters of one card each, an alias each, and no weights."""
    registry = AdapterRegistry(root)
    for number in range(count):
        version = root / f"adapter-{number}" / "1"
        version.mkdir(parents=True)
        named = card.model_copy(update={"name": version.parent.name, "version": 1})
        (version / "card.json").write_bytes(named.to_json())
        (version.parent / "refs.json").write_text('{"aliases": {"prod": 1}}')
    return registry


def in_memory(local: AdapterRegistry, cache: Path) -> RemoteRegistry:
    """The same in fsspec's file system in memory."""
    name, files = f"polling-{len(local.names())}", MemoryFileSystem()
    for path in local.root.rglob("*.json"):
        files.pipe_file(f"/{name}/{path.relative_to(local.root).as_posix()}", path.read_bytes())
    registry = open_registry(f"memory://{name}", cache=cache, refresh=3600)
    if not isinstance(registry, RemoteRegistry):
        raise TypeError(registry)
    return registry


def measure_folder(registry: AdapterRegistry) -> dict[str, float]:
    """What readers and a writer of a folder wait for."""
    return {
        "stamp": milliseconds(registry.stamp, 100),
        "resolve": milliseconds(lambda: registry.resolve("adapter-7@prod"), 20),
        "list": milliseconds(registry.list, 3),
        "alias": milliseconds(lambda: registry.alias("adapter-7", "beta", 1), 5),
    }


def measure_store(registry: RemoteRegistry) -> dict[str, float]:
    """What readers, the thread that looks for changes, and a writer of a store take."""
    return {
        "first read": milliseconds(registry.refresh, 1),
        "look": milliseconds(registry.refresh_if_changed, 100),
        "listing without a change": milliseconds(registry.refresh, 3),
        "resolve": milliseconds(lambda: registry.resolve("adapter-7@prod"), 20),
        "list": milliseconds(registry.list, 3),
        "alias": milliseconds(lambda: registry.alias("adapter-7", "beta", 1), 5),
    }


def main() -> None:
    """Measures registries of the given sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, nargs="+", default=[1000])
    card = AdapterRegistry("adapters").get("json")
    for count in parser.parse_args().adapters:
        with tempfile.TemporaryDirectory() as folder:
            local = filled(Path(folder) / "registry", card, count)
            store = in_memory(local, Path(folder) / "cache")
            for name, figures in (("folder", measure_folder(local)), ("store", measure_store(store))):
                shown = ", ".join(f"{what} {took:.2f}" for what, took in figures.items())
                print(f"{count:,} adapters, {name}: {shown}", flush=True)
            store.close()


if __name__ == "__main__":
    main()
