"""A registry in a store, by its public interface, on fsspec's file system in memory."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from adapterhub import (
    AdapterDisabledError,
    AdapterExistsError,
    AdapterInvalidError,
    AdapterNotFoundError,
    InvalidRequestError,
)
from adapterhub.peft_format.config import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.registry.remote import RemoteRegistry
from tests.registry.maker import make_adapter

Opener = Callable[..., RemoteRegistry]


def wait_until(condition: Callable[[], bool]) -> None:
    """Waits for a change that a reader has not seen yet; what it does not find counts as not yet."""
    deadline = time.monotonic() + 60
    while True:
        with suppress(AdapterNotFoundError):
            if condition():
                return
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_another_machine_reads_what_was_registered(opened: Opener, adapter: Path):
    card = opened().register("json", adapter, description="JSON")
    other = opened()
    assert other.resolve("json") == card
    assert [one.ref for one in other.list()] == ["json@1"]
    folder = other.folder(card)
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    assert (folder / WEIGHTS_FILE).read_bytes() == (adapter / WEIGHTS_FILE).read_bytes()


def test_a_change_is_seen_within_the_refresh_period(opened: Opener, adapter: Path):
    writer, reader = opened(), opened()
    assert reader.list() == []
    before = reader.stamp()
    writer.register("json", adapter)
    wait_until(lambda: [card.ref for card in reader.list()] == ["json@1"])
    assert reader.stamp() != before
    writer.register("json", adapter)
    writer.alias("json", "prod", 1)
    wait_until(lambda: reader.resolve("json").version == 2 and reader.resolve("json@prod").version == 1)
    writer.update("json@2", status="disabled")
    wait_until(lambda: reader.resolve("json").version == 1)
    with pytest.raises(AdapterDisabledError):
        reader.resolve("json@2")
    writer.remove("json@1", force=True)
    wait_until(lambda: len(reader.versions("json")) == 1)


def test_references_are_those_of_a_folder(remote: RemoteRegistry, adapter: Path):
    for _ in range(2):
        remote.register("json", adapter)
    remote.alias("json", "prod", 1)
    assert [remote.get(ref).version for ref in ("json", "json@1", "json@prod", "json@latest")] == [2, 1, 1, 2]
    assert remote.get("json@1").aliases == ("prod",)
    remote.alias("json", "prod", 2)
    remote.alias("json", "prod", None)
    with pytest.raises(AdapterNotFoundError, match="json@prod"):
        remote.get("json@prod")
    with pytest.raises(AdapterNotFoundError, match="no adapter 'jsn'") as error:
        remote.get("jsn")
    assert error.value.hint == "Did you mean 'json'?"
    for alias, version in (("next", 3), ("prod", None)):
        with pytest.raises(AdapterNotFoundError):
            remote.alias("json", alias, version)
    with pytest.raises(InvalidRequestError):
        remote.alias("json", "latest", 1)


def test_numbers_are_not_reused(remote: RemoteRegistry, opened: Opener, adapter: Path):
    for _ in range(3):
        remote.register("json", adapter)
    remote.remove("json@3")
    assert remote.register("json", adapter).version == 4
    remote.remove("json")
    assert remote.list() == []
    assert opened().register("json", adapter).version == 5


def test_a_removed_version_leaves_only_its_claim(
    remote: RemoteRegistry, adapter: Path, objects: dict[str, bytes]
):
    remote.register("json", adapter)
    remote.remove("json@1")
    assert list(objects) == [".stamp", ".versions/json/1.json", "json/refs.json"]


def test_a_version_with_an_alias_is_removed_with_force(remote: RemoteRegistry, adapter: Path):
    remote.register("json", adapter)
    remote.alias("json", "prod", 1)
    with pytest.raises(AdapterExistsError, match="'prod' points to json@1"):
        remote.remove("json@1")
    assert remote.get("json@prod").version == 1
    remote.remove("json@1", force=True)
    assert remote.verify() == []


def test_a_dry_run_stores_nothing(remote: RemoteRegistry, adapter: Path, objects: dict[str, bytes]):
    assert remote.register("json", adapter, dry_run=True).version == 1
    assert list(objects) == []


def test_a_damaged_adapter_is_not_stored(remote: RemoteRegistry, adapter: Path, objects: dict[str, bytes]):
    (adapter / WEIGHTS_FILE).write_bytes(b"damaged")
    with pytest.raises(AdapterInvalidError):
        remote.register("json", adapter)
    assert list(objects) == []


def test_revise_reads_and_writes_as_one_step(opened: Opener, adapter: Path):
    opened().register("json", adapter, tags=[])
    registries = [opened() for _ in range(4)]

    def add_tag(registry: RemoteRegistry, tag: str) -> None:
        registry.revise("json", lambda card: {"tags": [*card.tags, tag]})

    threads = [
        threading.Thread(target=add_tag, args=(registry, str(n))) for n, registry in enumerate(registries)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(opened().get("json").tags) == ["0", "1", "2", "3"]


def test_writers_get_numbers_of_their_own(opened: Opener, tmp_path: Path):
    adapters = [make_adapter(tmp_path / f"adapter-{n}", seed=n) for n in range(4)]
    cards = []

    def register(path: Path) -> None:
        cards.append(opened().register("json", path))

    threads = [threading.Thread(target=register, args=(path,)) for path in adapters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(card.version for card in cards) == [1, 2, 3, 4]
    reader = opened()
    assert {card.digest for card in reader.versions("json")} == {card.digest for card in cards}
    assert reader.verify() == []


def test_the_thread_that_looks_for_changes_ends_with_the_registry(opened: Opener, url: str, tmp_path: Path):
    from adapterhub.registry.remote import open_registry

    before = set(threading.enumerate())
    registry = open_registry(url, cache=tmp_path / "own", refresh=0.02)
    registry.list()
    (thread,) = set(threading.enumerate()) - before
    del registry
    gc.collect()
    wait_until(lambda: not thread.is_alive())


def test_the_files_of_a_version_that_was_removed_are_gone(opened: Opener, adapter: Path):
    writer, reader = opened(), opened()
    card = writer.register("json", adapter)
    assert reader.get("json") == card
    writer.remove("json@1")
    with pytest.raises(AdapterNotFoundError, match="json@1 are gone"):
        reader.folder(card)


def test_a_reference_is_resolved_in_one_state(opened: Opener, adapter: Path, monkeypatch: pytest.MonkeyPatch):
    """Also where a newer one arrives meanwhile: here with version 2, which the alias was moved to."""
    writer, reader = opened(), opened(refresh=3600)
    writer.register("json", adapter)
    writer.alias("json", "prod", 1)
    old = reader.refresh()
    writer.register("json", adapter)
    writer.alias("json", "prod", 2)
    states = iter([old])
    new = reader.refresh()
    monkeypatch.setattr(reader, "_current", lambda: next(states, new))
    assert reader.get("json@prod").version == 1
    assert reader.get("json@prod").version == 2


def test_readers_that_start_together_read_the_store_once(
    remote: RemoteRegistry, opened: Opener, adapter: Path, monkeypatch: pytest.MonkeyPatch
):
    remote.register("json", adapter)
    reader, refresh, calls = opened(refresh=3600), RemoteRegistry.refresh, []

    def slow(self: RemoteRegistry) -> object:
        calls.append(self)
        time.sleep(0.05)
        return refresh(self)

    monkeypatch.setattr(RemoteRegistry, "refresh", slow)
    threads = [threading.Thread(target=reader.list) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [reader]


def test_a_copied_folder_is_read_without_manifests(
    remote: RemoteRegistry, adapter: Path, objects: dict[str, bytes], tmp_path: Path
):
    from adapterhub import AdapterRegistry

    local = AdapterRegistry(tmp_path / "local")
    card = local.register("json", adapter)
    local.alias("json", "prod", 1)
    for path in (tmp_path / "local").rglob("*"):
        if path.is_file():
            objects[path.relative_to(tmp_path / "local").as_posix()] = path.read_bytes()
    assert remote.get("json@prod").digest == card.digest
    assert (remote.folder(card) / CONFIG_FILE).is_file()
    assert remote.verify() == []
    assert remote.register("json", adapter).version == 2
