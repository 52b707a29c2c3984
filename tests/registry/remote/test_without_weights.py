"""What reads an adapter's metadata downloads no weights."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from adapterhub import AdapterInvalidError, AdapterNotFoundError, RegistryUnavailableError
from adapterhub.capabilities import AdapterFeatures, Feature
from adapterhub.cli.main import cli
from adapterhub.peft_format.config import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.registry.remote import RemoteRegistry
from adapterhub.registry.remote.object_store import ObjectStore
from adapterhub.requests import own_templates
from adapterhub.requests.own_templates import OwnTemplates
from tests.registry.remote.test_remote_registry import Opener
from tests.waiting import wait_for

TEMPLATE = "{{ messages[0]['content'] }}"


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are downloaded."""
    names: list[str] = []
    download = ObjectStore.download

    def counting(self: ObjectStore, path: str, target: Path, limit: int) -> None:
        names.append(target.name)
        download(self, path, target, limit)

    monkeypatch.setattr(ObjectStore, "download", counting)
    return names


@pytest.fixture
def with_template(adapter: Path) -> Path:
    (adapter / "chat_template.jinja").write_text(TEMPLATE)
    return adapter


@pytest.mark.parametrize(
    "command",
    [
        ["list"],
        ["show", "json"],
        ["show", "json@1", "--json"],
        ["check", "json"],
        ["alias", "json", "prod", "1"],
        ["sync", "--dry-run"],
    ],
    ids=" ".join,
)
def test_commands(
    opened: Opener,
    adapter: Path,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    downloads: list[str],
    command: list[str],
):
    opened().register("json", adapter)
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "command"))
    where = [url, str(tmp_path / "copy")] if command[0] == "sync" else ["--registry", url]
    result = CliRunner().invoke(cli, [*command, *where])
    assert result.exit_code == 0, result.output
    assert downloads == []


def test_show_and_add_name_the_back_ends(
    opened: Opener, adapter: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = json.loads((adapter / CONFIG_FILE).read_text())
    (adapter / CONFIG_FILE).write_text(json.dumps({**config, "alpha_pattern": {"q_proj": 3}}))
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "command"))
    added = CliRunner().invoke(cli, ["add", "json", str(adapter), "--registry", url])
    assert added.exit_code == 0, added.output
    assert "Not for sglang" in added.output
    shown = CliRunner().invoke(cli, ["show", "json", "--json", "--registry", url])
    assert "sglang" not in json.loads(shown.stdout)["runs_on"]


def test_features_are_those_of_the_files(
    opened: Opener, adapter: Path, monkeypatch: pytest.MonkeyPatch, downloads: list[str]
):
    card = opened().register("json", adapter)
    expected = AdapterFeatures.of_folder(adapter)
    assert opened().features(card) == expected
    monkeypatch.setattr("adapterhub.registry.remote.fetching._START_BYTES", 8)  # a header that is longer
    reader = opened()
    assert reader.features(card) == expected
    assert downloads == []
    reader.folder(card)
    assert reader.features(card) == expected


@pytest.mark.parametrize("damage", [b"", b"short", b"\xff" * 100, b"\x10" + b"\0" * 7 + b"x" * 50])
def test_features_of_damaged_weights(opened: Opener, adapter: Path, objects: dict[str, bytes], damage: bytes):
    card = opened().register("json", adapter)
    objects[f"json/1/{WEIGHTS_FILE}"] = damage
    with pytest.raises(AdapterInvalidError, match=WEIGHTS_FILE):
        opened().features(card)


def test_features_of_a_version_that_was_removed(opened: Opener, adapter: Path):
    writer = opened()
    card = writer.register("json", adapter)
    writer.remove("json")
    with pytest.raises(AdapterNotFoundError, match="are gone"):
        opened().features(card)


def test_small_files_are_downloaded_and_checked(
    opened: Opener, with_template: Path, objects: dict[str, bytes], downloads: list[str]
):
    card = opened().register("json", with_template)
    reader = opened()
    assert sorted(path.name for path in reader.small_files(card).iterdir()) == [
        CONFIG_FILE,
        "chat_template.jinja",
    ]
    assert WEIGHTS_FILE not in downloads
    whole = reader.folder(card)
    assert reader.small_files(card) == whole
    objects["json/1/chat_template.jinja"] = b"x" * len(TEMPLATE)
    with pytest.raises(AdapterInvalidError, match="not the file that was registered"):
        opened().small_files(card)


@pytest.mark.parametrize("read", [RemoteRegistry.small_files, RemoteRegistry.features])
def test_files_that_are_read_are_not_the_next_to_leave_the_cache(
    opened: Opener, adapter: Path, tmp_path: Path, read: Callable[..., object]
):
    cache = tmp_path / "shared"
    card = opened().register("json", adapter)
    folder = opened(cache=cache).folder(card)
    os.utime(folder, (0, 0))
    read(opened(cache=cache), card)
    assert folder.stat().st_mtime > 0


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Downloads that wait until it is set."""
    release = threading.Event()
    download = ObjectStore.download

    def waiting(self: ObjectStore, *arguments: Any) -> None:
        assert release.wait(60)
        download(self, *arguments)

    monkeypatch.setattr(ObjectStore, "download", waiting)
    yield release
    release.set()


def test_a_request_does_not_wait_for_the_template_of_its_adapter(
    opened: Opener, with_template: Path, held: threading.Event
):
    card = opened().register("json", with_template)
    templates = OwnTemplates(opened())
    for _ in range(2):
        with pytest.raises(RegistryUnavailableError, match="are being downloaded") as error:
            templates.of(card)
        assert error.value.retryable
    held.set()
    wait_for(lambda: found(templates, card) == TEMPLATE)


def found(templates: OwnTemplates, card: Any) -> str | None:
    try:
        return templates.of(card)
    except RegistryUnavailableError:
        return None


def test_a_download_that_hangs_is_begun_again(
    opened: Opener, with_template: Path, held: threading.Event, monkeypatch: pytest.MonkeyPatch
):
    card = opened().register("json", with_template)
    first, second = opened(), opened()
    templates = OwnTemplates(first)
    monkeypatch.setattr(own_templates, "MAX_SECONDS", -1)
    assert found(templates, card) is None
    monkeypatch.setattr(templates, "_registry", second)
    held.set()
    wait_for(lambda: found(templates, card) == TEMPLATE)
    assert not second.expected_folder(card).exists()


def test_a_download_that_fails_is_an_error_and_tried_again(
    opened: Opener, with_template: Path, monkeypatch: pytest.MonkeyPatch
):
    card = opened().register("json", with_template)
    templates, errors = OwnTemplates(opened()), []

    def is_told() -> bool:
        try:
            templates.of(card)
        except RegistryUnavailableError as error:
            errors.append(error.message)
        return "no answer" in errors

    def fail(self: RemoteRegistry, card: Any) -> Path:
        raise RegistryUnavailableError("no answer")

    with monkeypatch.context() as patched:
        patched.setattr(RemoteRegistry, "small_files", fail)
        wait_for(is_told)
    wait_for(lambda: found(templates, card) == TEMPLATE)


def test_equal_weights_with_other_templates_are_told_apart(opened: Opener, with_template: Path):
    registry = opened()
    first = registry.register("json", with_template)
    (with_template / "chat_template.jinja").write_text("other")
    second = registry.register("json", with_template)
    assert first.digest == second.digest
    templates = OwnTemplates(registry)
    wait_for(lambda: found(templates, first) == TEMPLATE and found(templates, second) == "other")


def test_the_features_of_a_folder(adapter: Path, tmp_path: Path):
    from adapterhub import AdapterRegistry

    registry = AdapterRegistry(tmp_path / "registry")
    card = registry.register("json", adapter)
    assert registry.features(card) == AdapterFeatures.of_folder(adapter)
    assert Feature.DORA not in registry.features(card).features
    assert registry.small_files(card) == registry.folder(card)
