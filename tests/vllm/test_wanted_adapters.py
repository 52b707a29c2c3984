"""Which versions stay loaded on the servers: those that a bare name or an alias needs."""

from __future__ import annotations

from pathlib import Path

from adapterhub.registry import AdapterRegistry
from adapterhub.vllm.adapter_names import AdapterName
from adapterhub.vllm.blends import MaterialisedBlends
from adapterhub.vllm.wanted_adapters import RegisteredAdapters


async def test_the_versions_of_a_split_and_a_shadow_stay_loaded(
    tmp_path: Path, tiny_adapters: dict[str, Path]
) -> None:
    registry = AdapterRegistry(tmp_path)
    for _ in range(5):
        registry.register("json", tiny_adapters["json"])
    registered = RegisteredAdapters(registry, MaterialisedBlends(registry, None))

    async def current() -> set[int]:
        return {int(name.split("--v")[1].split("-")[0]) for name in (await registered.names()).current}

    assert await current() == {5}
    registry.alias("json", "prod", {2: 90, 3: 10})
    registry.shadow("json", "prod", 1)
    assert await current() == {1, 2, 3, 5}
    registry.alias("json", "prod", 4)
    registry.shadow("json", "prod", None)
    assert await current() == {4, 5}


async def test_a_damaged_version_does_not_count_the_others_as_removed(
    tmp_path: Path, tiny_adapters: dict[str, Path]
) -> None:
    registry = AdapterRegistry(tmp_path)
    first, second, third = (registry.register("json", tiny_adapters["json"]) for _ in range(3))
    registry.alias("json", "prod", 1)
    (registry.folder(third) / "card.json").write_text("damaged")
    names = await RegisteredAdapters(registry, MaterialisedBlends(registry, None)).names()
    assert names.all == {str(AdapterName.of(card.ref, card.digest)) for card in (first, second)}
    assert names.current == names.all
