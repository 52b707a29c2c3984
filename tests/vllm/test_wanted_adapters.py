"""Which versions stay loaded on the servers: those that a bare name or an alias needs."""

from __future__ import annotations

from pathlib import Path

from adapterhub.registry import AdapterRegistry
from adapterhub.vllm.wanted_adapters import RegisteredAdapters


async def test_the_versions_of_a_split_and_a_shadow_stay_loaded(
    tmp_path: Path, tiny_adapters: dict[str, Path]
) -> None:
    registry = AdapterRegistry(tmp_path)
    for _ in range(5):
        registry.register("json", tiny_adapters["json"])
    registered = RegisteredAdapters(registry)

    async def current() -> set[int]:
        return {int(name.split("--v")[1].split("-")[0]) for name in (await registered.names()).current}

    assert await current() == {5}
    registry.alias("json", "prod", {2: 90, 3: 10})
    registry.shadow("json", "prod", 1)
    assert await current() == {1, 2, 3, 5}
    registry.alias("json", "prod", 4)
    registry.shadow("json", "prod", None)
    assert await current() == {4, 5}
