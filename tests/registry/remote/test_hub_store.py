"""A registry in a repository of the Hugging Face Hub, over HTTP to a fake of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from adapterhub import (
    AdapterInvalidError,
    AdapterNotFoundError,
    ConfigError,
    RegistryError,
    RegistryLockedError,
)
from adapterhub.capabilities import AdapterFeatures
from adapterhub.peft_format.config import WEIGHTS_FILE
from adapterhub.peft_format.safetensors_header import header_end
from adapterhub.registry.remote import RemoteRegistry, open_registry
from tests.registry.remote.fake_hub import REPOSITORY, TOKEN, FakeHub, running_hub
from tests.registry.remote.test_remote_registry import wait_until


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with running_hub() as running:
        yield running


@pytest.fixture
def opened_hub(hub: FakeHub, tmp_path: Path) -> Iterator[Callable[..., RemoteRegistry]]:
    registries: list[RemoteRegistry] = []

    def open_one(url: str = f"hf://{REPOSITORY}", **options: Any) -> RemoteRegistry:
        storage = {"endpoint": hub.endpoint, "token": TOKEN, **options}
        registry = open_registry(
            url, cache=tmp_path / f"hub-{len(registries)}", refresh=0.02, storage_options=storage
        )
        assert isinstance(registry, RemoteRegistry)
        registries.append(registry)
        return registry

    yield open_one
    for registry in registries:
        registry.close()


Opener = Callable[..., RemoteRegistry]


def test_a_version_is_one_commit(opened_hub: Opener, hub: FakeHub, adapter: Path):
    card = opened_hub().register("json", adapter)
    assert len(hub.commits) == 2
    assert sorted(hub.files) == ["json/1/adapter_config.json", f"json/1/{WEIGHTS_FILE}", "json/1/card.json"]
    reader = opened_hub()
    assert reader.resolve("json") == card
    assert (reader.folder(card) / WEIGHTS_FILE).read_bytes() == (adapter / WEIGHTS_FILE).read_bytes()
    assert reader.verify() == []


def test_changes_are_seen(opened_hub: Opener, adapter: Path):
    writer, reader = opened_hub(), opened_hub()
    assert reader.list() == []
    writer.register("json", adapter)
    writer.register("json", adapter)
    writer.alias("json", "prod", 1)
    writer.update("json@2", description="new")
    wait_until(lambda: reader.get("json@prod").version == 1 and reader.get("json").description == "new")
    writer.remove("json@2")
    wait_until(lambda: len(reader.versions("json")) == 1)
    assert writer.register("json", adapter).version == 3


def test_a_folder_of_the_repository(opened_hub: Opener, hub: FakeHub, adapter: Path):
    registry = opened_hub(f"hf://{REPOSITORY}/team/adapters")
    card = registry.register("json", adapter)
    assert all(path.startswith("team/adapters/json/1/") for path in hub.files)
    assert opened_hub(f"hf://{REPOSITORY}/team/adapters").folder(card).is_dir()
    assert registry.names() == ["json"]


def test_a_commit_in_between_is_not_overwritten(opened_hub: Opener, hub: FakeHub, adapter: Path):
    registry, other = opened_hub(), opened_hub()
    registry.register("json", adapter)

    def alias_first() -> None:
        hub.before_commit = lambda: None
        other.alias("json", "beta", 1)

    hub.before_commit = alias_first
    registry.alias("json", "prod", 1)
    assert opened_hub().get("json").aliases == ("beta", "prod")

    def register_first() -> None:
        hub.before_commit = lambda: None
        assert other.register("json", adapter).version == 2

    hub.before_commit = register_first
    assert registry.register("json", adapter).version == 3
    assert [card.version for card in opened_hub().versions("json")] == [1, 2, 3]


def test_a_number_that_was_given_and_removed_in_between_is_not_given_again(
    opened_hub: Opener, hub: FakeHub, adapter: Path
):
    """Readers would not see a version under it."""
    registry, other = opened_hub(), opened_hub()
    registry.register("json", adapter)

    def register_and_remove_first() -> None:
        hub.before_commit = lambda: None
        assert other.register("json", adapter).version == 2
        other.remove("json@2")

    hub.before_commit = register_and_remove_first
    assert registry.register("json", adapter).version == 3
    assert [card.version for card in opened_hub().versions("json")] == [1, 3]


def test_a_writer_that_never_comes_first_gives_up(opened_hub: Opener, hub: FakeHub, adapter: Path):
    registry = opened_hub()

    def commit_first() -> None:
        hub.commit([{"value": {}}, {"key": "file", "value": {"path": f"{len(hub.commits)}", "content": ""}}])

    hub.before_commit = commit_first
    with pytest.raises(RegistryLockedError):
        registry.register("json", adapter)
    assert opened_hub().names() == []


def test_a_look_asks_for_the_commit_alone(opened_hub: Opener, hub: FakeHub, adapter: Path):
    """The Hub answers with the names of all files otherwise."""
    registry = opened_hub()
    registry.register("json", adapter)
    registry.refresh_if_changed()
    looks = [path for path in hub.asked if "/revision/" in path]
    assert looks
    assert all(path.endswith("?expand=sha") for path in looks)


def test_a_commit_counts_although_nothing_can_be_read_after_it(
    opened_hub: Opener, hub: FakeHub, adapter: Path
):
    registry = opened_hub()

    def go_down() -> None:
        hub.is_down = True

    hub.before_commit = go_down
    assert registry.register("json", adapter).version == 1
    hub.is_down = False
    assert opened_hub().names() == ["json"]


def test_features_are_read_without_the_weights(
    opened_hub: Opener, hub: FakeHub, adapter: Path, monkeypatch: pytest.MonkeyPatch
):
    card = opened_hub().register("json", adapter)
    header = header_end(adapter / WEIGHTS_FILE, hub.files[f"json/1/{WEIGHTS_FILE}"])
    monkeypatch.setattr("adapterhub.registry.remote.fetching._START_BYTES", 64)
    assert opened_hub().features(card) == AdapterFeatures.of_folder(adapter)
    assert hub.ranges == ["bytes=0-63", f"bytes=0-{header - 1}"]


def test_tampered_weights_are_not_given_out(opened_hub: Opener, hub: FakeHub, adapter: Path):
    card = opened_hub().register("json", adapter)
    content = bytearray(hub.files[f"json/1/{WEIGHTS_FILE}"])
    content[-1] ^= 1
    hub.files[f"json/1/{WEIGHTS_FILE}"] = bytes(content)
    with pytest.raises(AdapterInvalidError):
        opened_hub().folder(card)


def test_without_a_key_it_is_only_read(opened_hub: Opener, adapter: Path):
    opened_hub().register("json", adapter)
    reader = opened_hub(token=False)
    assert reader.names() == ["json"]
    with pytest.raises(RegistryError) as error:
        reader.alias("json", "prod", 1)
    assert TOKEN not in str(error.value)


def test_a_repository_that_is_not_there(opened_hub: Opener):
    with pytest.raises(RegistryError, match="hf://organisation/other could not be read") as error:
        opened_hub("hf://organisation/other").list()
    assert not error.value.retryable


def test_a_version_that_was_removed_meanwhile(opened_hub: Opener, adapter: Path):
    writer = opened_hub()
    card = writer.register("json", adapter)
    writer.remove("json")
    with pytest.raises(AdapterNotFoundError):
        opened_hub().folder(card)


@pytest.mark.parametrize("url", ["hf://name", "hf://organisation/name/a@b"])
def test_other_addresses_are_refused(url: str, tmp_path: Path):
    with pytest.raises(ConfigError, match="names no repository"):
        open_registry(url, cache=tmp_path)
