"""Copying registries: folder to URL, URL to folder, folder to folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from adapterhub import AdapterExistsError, AdapterInvalidError, AdapterNotFoundError, AdapterRegistry
from adapterhub.cli.main import cli
from adapterhub.peft_format.config import WEIGHTS_FILE
from adapterhub.registry.remote import RemoteRegistry, SyncStep, open_registry, sync_registry
from tests.registry.maker import make_adapter

Place = Callable[[str], AdapterRegistry]


@pytest.fixture
def place(url: str, tmp_path: Path) -> Place:
    """A registry of a kind: `folder` or `url`; each one another."""
    count = iter(range(100))

    def make(kind: str) -> AdapterRegistry:
        number = next(count)
        if kind == "folder":
            return AdapterRegistry(tmp_path / f"folder-{number}")
        return open_registry(f"{url}/{number}", cache=tmp_path / f"cache-{number}")

    return make


def filled(registry: AdapterRegistry, tmp_path: Path) -> AdapterRegistry:
    for seed in range(2):
        registry.register(
            "json", make_adapter(tmp_path / f"json-{seed}", seed=seed), description=f"number {seed}"
        )
    registry.register("sql", make_adapter(tmp_path / "sql", seed=9))
    registry.alias("json", "prod", 1)
    return registry


def state(registry: AdapterRegistry) -> dict[str, tuple[str, str, tuple[str, ...]]]:
    return {
        card.ref: (card.digest, card.description, card.aliases)
        for name in registry.names()
        for card in registry.versions(name)
    }


KINDS = [("folder", "folder"), ("folder", "url"), ("url", "folder"), ("url", "url")]


@pytest.mark.parametrize(("source", "destination"), KINDS)
def test_the_copy_is_the_registry(place: Place, tmp_path: Path, source: str, destination: str):
    one, other = filled(place(source), tmp_path), place(destination)
    steps = sync_registry(one, other)
    assert [(step.action, step.ref) for step in steps] == [
        ("copy", "json@1"),
        ("copy", "json@2"),
        ("alias", "json@prod"),
        ("copy", "sql@1"),
    ]
    assert state(other) == state(one)
    assert other.verify() == []
    assert (other.folder(other.get("json@1")) / WEIGHTS_FILE).is_file()
    assert sync_registry(one, other) == []
    assert other.register("json", tmp_path / "json-0").version == 3


def test_only_what_is_missing_is_copied(place: Place, tmp_path: Path):
    one, other = filled(place("folder"), tmp_path), place("url")
    sync_registry(one, other, ["json"], aliases=False)
    assert sorted(state(other)) == ["json@1", "json@2"]
    assert other.get("json@1").aliases == ()
    other.update("json@1", description="changed there")
    one.alias("json", "prod", 2)
    assert [step.ref for step in sync_registry(one, other)] == ["json@prod", "sql@1"]
    assert other.get("json@prod").version == 2
    assert other.get("json@1").description == "changed there"


def test_a_clash_changes_nothing(place: Place, tmp_path: Path):
    one, other = filled(place("folder"), tmp_path), place("url")
    other.register("sql", make_adapter(tmp_path / "another", seed=5))
    before = state(other)
    with pytest.raises(AdapterExistsError, match="sql@1 is another adapter"):
        sync_registry(one, other)
    assert state(other) == before
    sync_registry(one, other, ["json"])
    assert other.names() == ["json", "sql"]


def test_a_dry_run_changes_nothing(place: Place, tmp_path: Path):
    one, other = filled(place("folder"), tmp_path), place("url")
    steps = sync_registry(one, other, ["sql"], dry_run=True)
    card = one.get("sql")
    assert steps == [SyncStep("copy", "sql@1", 1, card.digest, card.peft.size_bytes)]
    assert other.names() == []


@pytest.mark.parametrize("kind", ["folder", "url"])
def test_what_was_removed_there_does_not_come_back(place: Place, tmp_path: Path, kind: str):
    one, other = filled(place("folder"), tmp_path), place(kind)
    sync_registry(one, other)
    other.remove("json@1", force=True)
    steps = sync_registry(one, other)
    assert [(step.action, step.ref) for step in steps] == [("removed", "json@1")]
    assert sorted(state(other)) == ["json@2", "sql@1"]


@pytest.mark.parametrize("kind", ["folder", "url"])
def test_splits_and_shadows_are_copied(place: Place, tmp_path: Path, kind: str):
    one, other = filled(place("url"), tmp_path), place(kind)
    one.register("json", tmp_path / "json-0")
    one.alias("json", "prod", {1: 90, 2: 10})
    one.shadow("json", "prod", 3, 20.0)
    sync_registry(one, other)
    assert other.aliases("json") == one.aliases("json")
    one.shadow("json", "prod", None)
    one.alias("json", "prod", {1: 50, 2: 50})
    assert [step.ref for step in sync_registry(one, other)] == ["json@prod"]
    assert other.aliases("json") == one.aliases("json")


def test_an_interrupted_sync_goes_on(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from fsspec.implementations.memory import MemoryFileSystem

    one, other = filled(place("folder"), tmp_path), place("url")
    put_file, calls = MemoryFileSystem.put_file, iter(range(100))

    def die(self: MemoryFileSystem, *arguments: object, **options: object) -> None:
        if next(calls) == 3:  # in the middle of the second version
            raise KeyboardInterrupt
        put_file(self, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", die)
    with pytest.raises(KeyboardInterrupt):
        sync_registry(one, other)
    monkeypatch.undo()
    assert isinstance(other, RemoteRegistry)
    other.refresh()
    assert sorted(state(other)) == ["json@1"]
    sync_registry(one, other)
    assert state(other) == state(one)
    assert other.verify() == []


@pytest.mark.parametrize("kind", ["folder", "url"])
def test_the_number_of_a_removed_version_is_not_given_again(place: Place, tmp_path: Path, kind: str):
    one, other = filled(place("folder"), tmp_path), place(kind)
    card = one.get("json@1")
    other.publish(card, one.folder(card))
    other.remove("json@1")
    with pytest.raises(AdapterExistsError, match="json@1 is taken"):
        other.publish(card, one.folder(card), resume=True)
    assert other.names() == []


def test_files_that_no_reader_accepts_are_not_uploaded(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    one, other = filled(place("folder"), tmp_path), place("url")
    extra = one.folder(one.get("sql")) / "notes.md"
    extra.write_text("x" * 10_000)
    monkeypatch.setattr("adapterhub.registry.sources._MAX_FILE_BYTES", 9_999)
    with pytest.raises(AdapterInvalidError, match=r"notes\.md has 10,000 bytes"):
        sync_registry(one, other, ["sql"])
    extra.unlink()
    sync_registry(one, other, ["sql"])
    assert other.get("sql").version == 1
    assert other.verify() == []


@pytest.mark.parametrize("destination", ["folder", "url"])
def test_a_name_that_is_given_twice_is_copied_once(place: Place, tmp_path: Path, destination: str):
    steps = sync_registry(filled(place("folder"), tmp_path), place(destination), ["sql", "sql"])
    assert [step.ref for step in steps] == ["sql@1"]


@pytest.mark.parametrize("kind", ["folder", "url"])
def test_a_source_without_adapters_is_an_error(place: Place, kind: str):
    """As one whose location is mistyped: a copy that backs up nothing must not look like one."""
    with pytest.raises(AdapterNotFoundError, match="holds no adapters"):
        sync_registry(place(kind), place("folder"))


def test_tampered_files_are_not_copied(place: Place, tmp_path: Path):
    one, other = filled(place("folder"), tmp_path), place("url")
    weights = one.folder(one.get("json@2")) / WEIGHTS_FILE
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(AdapterInvalidError, match="json@2"):
        sync_registry(one, other)
    assert sorted(state(other)) == ["json@1"]


def test_links_in_a_folder_are_not_followed(place: Place, tmp_path: Path):
    one, other = filled(place("folder"), tmp_path), place("url")
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (one.folder(one.get("sql")) / "extra.json").symlink_to(secret)
    sync_registry(one, other, ["sql"])
    assert not (other.folder(other.get("sql")) / "extra.json").exists()


def test_an_unknown_name_is_an_error(place: Place, tmp_path: Path):
    with pytest.raises(AdapterNotFoundError):
        sync_registry(filled(place("folder"), tmp_path), place("url"), ["jsn"])


def test_progress_names_each_step(place: Place, tmp_path: Path):
    shown: list[tuple[int, int, str]] = []
    one = filled(place("folder"), tmp_path)
    sync_registry(one, place("folder"), ["json"], progress=lambda *step: shown.append(step))
    assert shown == [(0, 3, "json@1"), (1, 3, "json@2"), (2, 3, "json@prod"), (3, 3, "")]


def test_the_command(place: Place, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "cache"))
    source = str(filled(place("folder"), tmp_path).root)

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, list(arguments))
        return result.exit_code, result.stdout

    code, shown = run("sync", source, url, "--dry-run", "--json")
    assert code == 0
    assert [step["ref"] for step in json.loads(shown)] == ["json@1", "json@2", "json@prod", "sql@1"]
    assert run("list", "--registry", url, "--json")[1].strip() == "[]"
    assert run("sync", source, url)[0] == 0
    code, shown = run("list", "--registry", url, "--json")
    assert [card["name"] for card in json.loads(shown)] == ["json", "sql"]
    assert json.loads(run("show", "json@prod", "--registry", url, "--json")[1])["version"] == 1
    assert run("verify", "--registry", url)[0] == 0
    assert json.loads(run("sync", url, source, "--json")[1]) == []
