"""What it costs to notice changes in a registry of 1,000 adapters: its stamp, against reading all cards.

python benchmarks/registry_polling.py [--adapters 1000]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from adapterhub import AdapterRegistry
from adapterhub.registry.remote import RemoteRegistry, open_registry


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """The best time of one call."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return 1000 * min(times)


def main() -> None:
    """Measures a folder and a store in memory, which has no network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=1000)
    count = parser.parse_args().adapters
    card = AdapterRegistry("adapters").get("json")
    with tempfile.TemporaryDirectory() as folder:
        local = AdapterRegistry(Path(folder) / "registry")
        for number in range(count):
            version = local.root / f"adapter-{number}" / "1"
            version.mkdir(parents=True)
            named = card.model_copy(update={"name": f"adapter-{number}", "version": 1})
            (version / "card.json").write_bytes(named.to_json())
        print(
            f"folder: stamp {milliseconds(local.stamp, 100):.3f} ms, list {milliseconds(local.list, 3):.0f} ms"
        )
        store = open_registry("memory://polling", cache=Path(folder) / "cache", refresh=3600)
        if not isinstance(store, RemoteRegistry):
            raise TypeError(store)
        from fsspec.implementations.memory import MemoryFileSystem

        MemoryFileSystem().put(f"{local.root}/", "/polling/", recursive=True)
        first = milliseconds(store.refresh, 1)
        print(
            f"store in memory: first read {first:.0f} ms, look {milliseconds(store.refresh_if_changed, 100):.3f} ms, "
            f"listing without a change {milliseconds(store.refresh, 3):.0f} ms, "
            f"list {milliseconds(store.list, 3):.1f} ms"
        )


if __name__ == "__main__":
    main()
