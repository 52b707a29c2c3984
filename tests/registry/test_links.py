"""A registry may come from elsewhere: no link, pipe or device in it leads a reader or a writer out of it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.errors import AdapterInvalidError, RegistryError
from adapterhub.registry import AdapterRegistry
from tests.registry.maker import content, make_adapter

Change = Callable[[AdapterRegistry, Path], object]
CHANGES: dict[str, Change] = {
    "register": lambda registry, adapter: registry.register("json", adapter),
    "update": lambda registry, _: registry.update("json@1", description="new"),
    "alias": lambda registry, _: registry.alias("json", "prod", 1),
    "remove": lambda registry, _: registry.remove("json@1"),
}


@pytest.fixture
def filled(registry: AdapterRegistry, adapter: Path) -> AdapterRegistry:
    registry.register("json", adapter)
    return registry


@pytest.fixture
def outside(tmp_path: Path, adapter: Path) -> Path:
    """A folder outside, with old content that looks like a killed writer's and like an adapter."""
    folder = tmp_path / "outside"
    other = AdapterRegistry(tmp_path / "other")
    other.register("json", adapter)
    (other.root / "json").rename(folder)
    (folder / "precious").mkdir()
    (folder / "precious" / "thesis.txt").write_text("x")
    os.utime(folder / "precious", (time.time() - 10**6, time.time() - 10**6))
    return folder


def replace_by_link(path: Path, target: Path) -> None:
    if path.exists():
        path.rename(path.parent.parent / f"moved-{path.name}")
    path.symlink_to(target)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("owned", [".staging", ".lock", "json"])
def test_no_write_leaves_the_registry(
    filled: AdapterRegistry, adapter: Path, outside: Path, owned: str, change: Change
) -> None:
    replace_by_link(filled.root / owned, outside / "card.txt" if owned == ".lock" else outside)
    before = content(outside)
    with pytest.raises(RegistryError) as caught:
        change(filled, adapter)
    assert caught.value.hint
    assert content(outside) == before
    assert not (outside / "card.txt").exists()
    assert [problem.ref for problem in filled.verify()] == [owned]


def test_a_linked_adapter_is_not_read(filled: AdapterRegistry, outside: Path) -> None:
    replace_by_link(filled.root / "json", outside)
    for read in (filled.get, filled.resolve, filled.versions):
        with pytest.raises(AdapterInvalidError, match="not a folder of the registry but a link"):
            read("json")
    assert filled.list() == []


def test_a_linked_version_is_not_read_and_keeps_its_number(
    filled: AdapterRegistry, adapter: Path, outside: Path
) -> None:
    (filled.root / "json" / "2").symlink_to(outside / "1")
    before = content(outside)
    assert filled.resolve("json").version == 1
    assert filled.register("json", adapter).version == 3
    assert [problem.ref for problem in filled.verify()] == ["json"]
    assert content(outside) == before


def test_a_replaced_card_stays_inside(filled: AdapterRegistry, tmp_path: Path) -> None:
    target = tmp_path / "card.json"
    (filled.root / "json/1/card.json").rename(target)
    (filled.root / "json/1/card.json").symlink_to(target)
    before = target.read_bytes()
    with pytest.raises(AdapterInvalidError, match="not a regular file"):
        filled.update("json@1", description="new")
    assert target.read_bytes() == before


# What the registry reads, and how it is read.
FILES: dict[str, Callable[[AdapterRegistry], object]] = {
    "json/refs.json": lambda registry: registry.get("json"),
    "json/1/card.json": lambda registry: registry.get("json"),
    "json/1/adapter_config.json": lambda registry: registry.verify(),
    "json/1/adapter_model.safetensors": lambda registry: registry.verify(),
}


def outcome(read: Callable[[], object]) -> str:
    try:
        return str(read())
    except AdapterInvalidError as error:
        return error.message


def make_device_link(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [os.mkfifo, make_device_link], ids=["pipe", "device"])
@pytest.mark.parametrize("file", FILES)
@pytest.mark.timeout(60)
def test_a_pipe_or_an_endless_device_is_not_read(
    filled: AdapterRegistry, file: str, make: Callable[[Path], None]
) -> None:
    path = filled.root / file
    path.unlink(missing_ok=True)
    make(path)
    assert "not a regular file" in outcome(lambda: FILES[file](filled))


def test_verify_names_every_link(filled: AdapterRegistry, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("{}")
    for name in ("linked", "json/5", "json/1/tokenizer.json"):
        (filled.root / name).symlink_to(tmp_path / "file")
    os.mkfifo(filled.root / "json/1/pipe")
    problems = {(problem.ref, problem.message.split()[0]) for problem in filled.verify()}
    assert problems == {
        ("linked", "linked"),
        ("json", "json/5"),
        ("json@1", "json/1/tokenizer.json"),
        ("json@1", "json/1/pipe"),
    }


def test_linked_weights_are_not_loaded(filled: AdapterRegistry, tmp_path: Path) -> None:
    import torch

    from adapterhub.lora.loading import load_folder_deltas

    weights = filled.root / "json/1/adapter_model.safetensors"
    weights.rename(tmp_path / "weights")
    weights.symlink_to(tmp_path / "weights")
    with pytest.raises(AdapterInvalidError, match="not a regular file"):
        load_folder_deltas(filled.root / "json/1", None, {}, dtype=torch.float32)


def test_a_root_that_is_reached_through_a_link(tmp_path: Path, adapter: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "adapters").symlink_to(tmp_path / "disk")
    registry = AdapterRegistry(tmp_path / "adapters")
    for change in ("register", "update", "alias"):
        CHANGES[change](registry, adapter)
    assert registry.resolve("json@prod").description == "new"
    assert (tmp_path / "disk/json/1/card.json").is_file()
    assert registry.verify() == []


def test_a_file_in_the_place_of_a_folder(filled: AdapterRegistry, tmp_path: Path) -> None:
    (filled.root / "text").write_text("x")
    with pytest.raises(AdapterInvalidError, match="'text' is not a folder"):
        filled.register("text", make_adapter(tmp_path / "one"))
    registry = AdapterRegistry(filled.root / "text")
    for read in (registry.list, registry.verify, lambda: registry.get("json")):
        with pytest.raises(RegistryError) as caught:
            read()
        assert caught.value.hint
