"""What goes wrong in an object store: writers that die or race, damaged objects, listings that lag, no answers."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFileSystem

from adapterhub import (
    AdapterCard,
    AdapterExistsError,
    AdapterInvalidError,
    AdapterNotFoundError,
    InvalidRequestError,
    RegistryError,
    RegistryLockedError,
    RegistryUnavailableError,
)
from adapterhub.cli.main import cli
from adapterhub.peft_format.config import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.registry.refs import Alias, Refs
from adapterhub.registry.remote import RemoteRegistry
from adapterhub.registry.remote.catalog import RemoteCatalog, read_catalog
from adapterhub.registry.remote.conditional import MemoryWrites, NoWrites
from adapterhub.registry.remote.errors import ConflictError
from adapterhub.registry.remote.object_store import ObjectStore
from adapterhub.registry.remote.store import StoredObject
from tests.registry.maker import make_adapter
from tests.registry.remote.test_remote_registry import Opener, wait_until


class Killed(BaseException):
    """Ends a writer as a signal would: nothing is cleaned up."""


class FaultyFiles:
    """fsspec's file system in memory, with faults.

    Attributes:
        before_write: Called with the path of every object that is written or deleted.
        listing: What `find` returns in place of the present listing.
        down: Whether nothing answers.
    """

    def __init__(self) -> None:
        self._fs = MemoryFileSystem()
        self.before_write: Callable[[str], object] = lambda path: None
        self.listing: dict[str, Any] | None = None
        self.down = False

    def __getattr__(self, name: str) -> Any:
        if self.down:
            raise TimeoutError("https://bucket.example/?X-Amz-Signature=secret")
        return getattr(self._fs, name)

    def info(self, path: str) -> Any:
        return self.__getattr__("info")(path)

    def pipe_file(self, path: str, content: bytes) -> None:
        self.before_write(path)
        self._fs.pipe_file(path, content)

    def put_file(self, source: str, path: str) -> None:
        self.before_write(path)
        self._fs.put_file(source, path)

    def rm_file(self, path: str) -> None:
        self.before_write(path)
        self._fs.rm_file(path)

    def find(self, root: str, detail: bool) -> Any:
        if self.down:
            raise TimeoutError
        return self._fs.find(root, detail=detail) if self.listing is None else self.listing


class FaultyWrites(MemoryWrites):
    """Has the hook called before the lock of `MemoryWrites` is taken, so that it may write."""

    def __init__(self, files: FaultyFiles) -> None:
        super().__init__(MemoryFileSystem())
        self._files = files

    def create(self, path: str, content: bytes) -> None:
        self._before(path)
        super().create(path, content)

    def replace(self, path: str, content: bytes, tag: str) -> None:
        self._before(path)
        super().replace(path, content, tag)

    def _before(self, path: str) -> None:
        if self._files.down:
            raise TimeoutError
        self._files.before_write(path)


@pytest.fixture
def files() -> FaultyFiles:
    return FaultyFiles()


@pytest.fixture
def faulty(files: FaultyFiles, url: str, tmp_path: Path) -> RemoteRegistry:
    store = ObjectStore(files, url.removeprefix("memory:/"), url, FaultyWrites(files))
    return RemoteRegistry(store, url, tmp_path / "faulty", refresh=0.02, max_cache_bytes=2**30)


WRITES = [".versions/", CONFIG_FILE, WEIGHTS_FILE, "/card.json", ".stamp"]


@pytest.mark.parametrize("at", WRITES)
def test_a_writer_that_dies_leaves_a_version_whole_or_not_at_all(
    faulty: RemoteRegistry, files: FaultyFiles, opened: Opener, adapter: Path, at: str
):
    def die(path: str) -> None:
        if at in path:
            raise Killed

    files.before_write = die
    with pytest.raises(Killed):
        faulty.register("json", adapter)
    reader = opened()
    is_stored = at == ".stamp"  # everything is there, only nobody has been told
    assert [card.ref for card in reader.list()] == (["json@1"] if is_stored else [])
    for card in reader.list():
        assert (reader.folder(card) / WEIGHTS_FILE).is_file()
    number = reader.register("json", adapter).version
    assert number == (1 if at == ".versions/" else 2)
    assert [card.version for card in reader.versions("json")] == ([1, 2] if is_stored else [number])


def test_what_a_dead_writer_left_is_found_and_removed(
    faulty: RemoteRegistry, files: FaultyFiles, opened: Opener, adapter: Path, objects: dict[str, bytes]
):
    def die(path: str) -> None:
        if path.endswith("card.json"):
            raise Killed

    files.before_write = die
    with pytest.raises(Killed):
        faulty.register("json", adapter)
    reader = opened()
    (problem,) = reader.verify()
    assert problem.ref == "json@1"
    assert "upload" in problem.message
    reader.remove("json@1")
    assert list(objects) == [".stamp", ".versions/json/1.json", "json/refs.json"]
    assert reader.register("json", adapter).version == 2
    assert reader.verify() == []


def test_the_command_removes_what_a_dead_writer_left(
    faulty: RemoteRegistry,
    files: FaultyFiles,
    opened: Opener,
    adapter: Path,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    def die(path: str) -> None:
        if path.endswith("card.json"):
            raise Killed

    files.before_write = die
    with pytest.raises(Killed):
        faulty.register("json", adapter)
    monkeypatch.setenv("ADAPTERHUB_CACHE", str(tmp_path / "command"))
    result = CliRunner().invoke(cli, ["rm", "json@1", "--yes", "--registry", url])
    assert result.exit_code == 0, result.output
    assert opened().verify() == []


@pytest.mark.parametrize("at", [WEIGHTS_FILE, CONFIG_FILE, "card.json"])
def test_a_remover_that_dies_has_removed_the_version(
    faulty: RemoteRegistry,
    files: FaultyFiles,
    opened: Opener,
    adapter: Path,
    objects: dict[str, bytes],
    at: str,
):
    for _ in range(2):
        faulty.register("json", adapter)

    def die(path: str) -> None:
        if path.endswith(at):
            raise Killed

    files.before_write = die
    with pytest.raises(Killed):
        faulty.remove("json@2")
    reader = opened()
    assert [card.ref for card in reader.versions("json")] == ["json@1"]
    with pytest.raises(AdapterNotFoundError):
        reader.alias("json", "prod", 2)
    (problem,) = reader.verify()
    assert (problem.ref, "files of it are left" in problem.message) == ("json@2", True)
    reader.remove("json@2")
    assert reader.verify() == []
    assert not [path for path in objects if path.startswith("json/2/")]
    assert reader.register("json", adapter).version == 3


def test_an_alias_cannot_be_set_to_a_version_that_is_being_removed(
    faulty: RemoteRegistry, files: FaultyFiles, opened: Opener, adapter: Path
):
    for _ in range(2):
        faulty.register("json", adapter)
    remover = opened()

    def remove_first(path: str) -> None:
        files.before_write = lambda path: None
        remover.remove("json@1")

    files.before_write = remove_first
    with pytest.raises(AdapterNotFoundError):
        faulty.alias("json", "prod", 1)
    assert opened().verify() == []


def test_two_writers_of_aliases_lose_none(
    faulty: RemoteRegistry, files: FaultyFiles, opened: Opener, adapter: Path
):
    faulty.register("json", adapter)
    other = opened()

    def alias_first(path: str) -> None:
        files.before_write = lambda path: None
        other.alias("json", "beta", 1)

    files.before_write = alias_first
    faulty.alias("json", "prod", 1)
    assert opened().get("json").aliases == ("beta", "prod")


def test_an_object_that_is_replaced_by_a_longer_one_while_it_is_read(
    faulty: RemoteRegistry, files: FaultyFiles, opened: Opener, adapter: Path
):
    faulty.register("json", adapter)
    other = opened()
    info = files.info

    def replace_after(path: str) -> Any:
        found = info(path)
        if path.endswith("card.json"):
            files.info = info
            other.update("json@1", description="a longer card" * 10)
        return found

    files.info = replace_after
    faulty.update("json@1", tags=["new"])
    card = opened().get("json")
    assert (card.tags, card.description) == (("new",), "a longer card" * 10)


def test_a_writer_that_never_comes_first_gives_up(
    faulty: RemoteRegistry, files: FaultyFiles, opened: Opener, adapter: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    faulty.register("json", adapter)
    other, turns = opened(), iter(range(1000))

    def alias_first(path: str) -> None:
        if path.endswith("refs.json"):
            other.alias("json", f"beta-{next(turns)}", 1)

    files.before_write = alias_first
    with pytest.raises(RegistryLockedError) as error:
        faulty.alias("json", "prod", 1)
    assert error.value.retryable


def test_a_writer_that_gets_no_number_gives_up(
    faulty: RemoteRegistry, adapter: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(self: FaultyWrites, path: str, content: bytes) -> None:
        raise ConflictError(path)

    monkeypatch.setattr(FaultyWrites, "create", refuse)
    with pytest.raises(RegistryLockedError, match="numbers were taken"):
        faulty.register("json", adapter)


def test_a_store_without_conditional_writes_is_only_read(
    url: str, opened: Opener, adapter: Path, tmp_path: Path
):
    opened().register("json", adapter)
    fs = MemoryFileSystem()
    store = ObjectStore(fs, url.removeprefix("memory:/"), url, NoWrites(url))
    registry = RemoteRegistry(store, url, tmp_path / "read", max_cache_bytes=2**30)
    assert registry.folder(registry.get("json")).is_dir()
    for change in (
        lambda: registry.register("json", adapter),
        lambda: registry.alias("json", "prod", 1),
        lambda: registry.update("json", description="x"),
        lambda: registry.remove("json"),
    ):
        with pytest.raises(RegistryError, match="can only be read"):
            change()
    assert opened().get("json").description == ""


def tampered(objects: dict[str, bytes], path: str) -> None:
    content = bytearray(objects[path])
    content[-1] ^= 1
    objects[path] = bytes(content)


DAMAGE: dict[str, Callable[[dict[str, bytes]], None]] = {
    "tampered weights": lambda objects: tampered(objects, f"json/1/{WEIGHTS_FILE}"),
    "truncated weights": lambda objects: objects.__setitem__(
        f"json/1/{WEIGHTS_FILE}", objects[f"json/1/{WEIGHTS_FILE}"][:-4]
    ),
    "longer weights": lambda objects: objects.__setitem__(
        f"json/1/{WEIGHTS_FILE}", objects[f"json/1/{WEIGHTS_FILE}"] + b"\0"
    ),
    "no weights": lambda objects: objects.__delitem__(f"json/1/{WEIGHTS_FILE}"),
    "tampered config": lambda objects: objects.__setitem__(
        f"json/1/{CONFIG_FILE}",
        objects[f"json/1/{CONFIG_FILE}"].replace(b'"lora_alpha": 4', b'"lora_alpha": 9'),
    ),
    "damaged manifest": lambda objects: objects.__setitem__(".versions/json/1.json", b"{}x"),
    "a path in the manifest": lambda objects: objects.__setitem__(
        ".versions/json/1.json",
        objects[".versions/json/1.json"].replace(CONFIG_FILE.encode(), b"../../evil.json"),
    ),
    "code in the manifest": lambda objects: objects.__setitem__(
        ".versions/json/1.json",
        objects[".versions/json/1.json"].replace(CONFIG_FILE.encode(), b"modeling.py"),
    ),
}


@pytest.mark.parametrize(
    ("damage", "manifest"),
    [
        (damage, manifest)
        for damage in DAMAGE
        for manifest in (True, False)
        if manifest or "manifest" not in damage
    ],
)
def test_damaged_files_are_never_given_out(
    opened: Opener, adapter: Path, objects: dict[str, bytes], tmp_path: Path, damage: str, manifest: bool
):
    card = opened().register("json", adapter)
    DAMAGE[damage](objects)
    if not manifest:
        del objects[".versions/json/1.json"]
    reader = opened(cache=tmp_path / "reader")
    assert reader.get("json") == card
    with pytest.raises(AdapterInvalidError):
        reader.folder(card)
    kept = [path.name for path in (tmp_path / "reader").rglob("*") if path.is_file()]
    assert not {WEIGHTS_FILE, CONFIG_FILE, "evil.json"} & set(kept)
    assert not (tmp_path / "evil.json").exists()
    assert [problem.ref for problem in reader.verify()] == ["json@1"]


def test_a_tampered_template_is_not_given_out(opened: Opener, adapter: Path, objects: dict[str, bytes]):
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    card = opened().register("json", adapter)
    objects["json/1/chat_template.jinja"] = b"{{ messages! }}"[:14]
    with pytest.raises(AdapterInvalidError, match=r"chat_template\.jinja"):
        opened().folder(card)


def test_other_weights_under_the_same_card_are_not_given_out(
    opened: Opener, adapter: Path, objects: dict[str, bytes], tmp_path: Path
):
    """Also where the manifest was replaced with them."""
    card = opened().register("json", adapter)
    make_adapter(tmp_path / "other", seed=7)
    objects[f"json/1/{WEIGHTS_FILE}"] = (tmp_path / "other" / WEIGHTS_FILE).read_bytes()
    del objects[".versions/json/1.json"]
    with pytest.raises(AdapterInvalidError, match="registered"):
        opened().folder(card)


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("json/1/card.json", b"{"),
        ("json/1/card.json", b" " * (2**20 + 1)),
        ("json/refs.json", b"[]"),
        ("json/refs.json", b" " * (2**20 + 1)),
    ],
)
def test_damaged_cards_and_aliases_hide_one_adapter(
    opened: Opener, adapter: Path, objects: dict[str, bytes], path: str, content: bytes
):
    writer = opened()
    writer.register("json", adapter)
    writer.register("sql", adapter)
    objects[path] = content
    reader = opened()
    assert [card.ref for card in reader.list()] == ["sql@1"]
    with pytest.raises(AdapterInvalidError):
        reader.get("json")
    assert {problem.ref.split("@")[0] for problem in reader.verify()} == {"json"}


@pytest.mark.parametrize(
    "path",
    [
        "../evil/1/card.json",
        "..%2fevil/1/card.json",
        "CON/1/card.json",
        "a b/1/card.json",
        "json/01/card.json",
    ],
)
def test_keys_that_are_no_adapters_are_ignored(
    opened: Opener, adapter: Path, objects: dict[str, bytes], path: str
):
    opened().register("json", adapter)
    objects[path] = objects["json/1/card.json"]
    assert [card.ref for card in opened().list()] == ["json@1"]


def test_the_card_of_another_version_is_refused(opened: Opener, adapter: Path, objects: dict[str, bytes]):
    opened().register("json", adapter)
    objects["sql/1/card.json"] = objects["json/1/card.json"]
    with pytest.raises(AdapterInvalidError, match="the card of json@1"):
        opened().get("sql")


def test_a_listing_that_lags_does_no_harm(
    faulty: RemoteRegistry, files: FaultyFiles, opened: Opener, adapter: Path, url: str
):
    writer = opened()
    writer.register("json", adapter)
    old = dict(MemoryFileSystem().find(url.removeprefix("memory:/"), detail=True))
    writer.register("json", adapter)
    writer.alias("json", "prod", 2)
    writer.remove("json@1")
    files.listing = old
    # It lists json@1, whose objects are gone, and knows nothing of json@2.
    assert faulty.list() == []
    assert faulty.register("json", adapter).version == 3
    files.listing = None
    wait_until(lambda: [card.version for card in (faulty.refresh() and faulty.versions("json"))] == [2, 3])
    assert faulty.get("json@prod").version == 2
    assert faulty.verify() == []


def test_while_the_store_is_down_the_last_state_is_used(
    faulty: RemoteRegistry,
    files: FaultyFiles,
    opened: Opener,
    adapter: Path,
    caplog: pytest.LogCaptureFixture,
):
    card = faulty.register("json", adapter)
    folder = faulty.folder(card)
    assert faulty.resolve("json") == card
    files.down = True
    with caplog.at_level(logging.WARNING):
        wait_until(lambda: "last known state" in caplog.text)
    assert faulty.resolve("json") == card
    assert faulty.folder(card) == folder
    with pytest.raises(RegistryUnavailableError) as error:
        faulty.register("json", adapter)
    assert error.value.retryable
    assert "secret" not in f"{error.value}{error.value.__cause__}{caplog.text}"
    files.down = False
    opened().update("json", description="back")
    wait_until(lambda: faulty.get("json").description == "back")
    faulty.close()


def test_no_reader_waits_for_a_store_that_hangs(faulty: RemoteRegistry, files: FaultyFiles, adapter: Path):
    card = faulty.register("json", adapter)
    hanging, released = threading.Event(), threading.Event()

    def hang(path: str) -> Any:
        hanging.set()
        released.wait(60)
        raise TimeoutError

    files.info = hang
    try:
        assert faulty.resolve("json") == card
        assert hanging.wait(60)
        assert faulty.resolve("json@1") == card
        assert faulty.list() == [card]
    finally:
        released.set()
        faulty.close()


def test_a_download_that_fails_is_tried_again(faulty: RemoteRegistry, files: FaultyFiles, adapter: Path):
    card = faulty.register("json", adapter)
    files.down = True
    with pytest.raises(RegistryUnavailableError):
        faulty.folder(card)
    files.down = False
    assert (faulty.folder(card) / WEIGHTS_FILE).is_file()


def test_a_weights_file_that_is_too_large_is_not_downloaded(
    opened: Opener, adapter: Path, objects: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    card = opened().register("json", adapter)
    monkeypatch.setattr("adapterhub.registry.sources.MAX_WEIGHTS_BYTES", 100)
    with pytest.raises(AdapterInvalidError, match="at most 100 are accepted"):
        opened().folder(card)


def test_a_file_that_grows_is_not_read_to_its_end(opened: Opener, adapter: Path, objects: dict[str, bytes]):
    """The listing, or the manifest, says how much is read."""
    card = opened().register("json", adapter)
    objects[f"json/1/{CONFIG_FILE}"] = b" " * 10_000
    with pytest.raises(AdapterInvalidError, match="more than"):
        opened().folder(card)


def test_a_fork_while_the_store_is_read(faulty: RemoteRegistry, files: FaultyFiles, adapter: Path):
    """The child's threads and locks are its own: a refresh that the parent was in does not hold it up."""
    faulty.register("json", adapter)
    hanging, released, info = threading.Event(), threading.Event(), files.info

    def hang(path: str) -> Any:
        hanging.set()
        assert released.wait(60)
        return info(path)

    files.info = hang
    refreshing = threading.Thread(target=faulty.refresh)
    refreshing.start()
    assert hanging.wait(60)
    if not (child := os.fork()):
        signal.alarm(30)
        files.info = info
        is_read = bool(faulty.refresh().names()) and [card.ref for card in faulty.list()] == ["json@1"]
        os._exit(0 if is_read else 1)
    try:
        assert os.waitpid(child, 0)[1] == 0
    finally:
        released.set()
        refreshing.join()
        faulty.close()


def test_errors_of_this_machines_disk_are_not_the_stores(
    opened: Opener, adapter: Path, url: str, tmp_path: Path
):
    opened().register("json", adapter)
    (tmp_path / "file").touch()
    fs = MemoryFileSystem()
    store = ObjectStore(fs, url.removeprefix("memory:/"), url, MemoryWrites(fs))
    with pytest.raises(NotADirectoryError):
        store.download(f"json/1/{WEIGHTS_FILE}", tmp_path / "file" / WEIGHTS_FILE, 10**6)


def test_aliases_that_nobody_could_read_again_are_not_stored(
    opened: Opener, adapter: Path, objects: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
):
    registry = opened()
    registry.register("json", adapter)
    registry.alias("json", "prod", 1)
    before = objects["json/refs.json"]
    monkeypatch.setattr("adapterhub.registry.refs.MAX_REFS_BYTES", len(before) + 10)
    with pytest.raises(InvalidRequestError, match="would take more than"):
        registry.alias("json", "a-longer-name", 1)
    assert objects["json/refs.json"] == before


@pytest.fixture
def removed_meanwhile(files: FaultyFiles, opened: Opener, adapter: Path) -> AdapterCard:
    """The card of json@1; another writer removes json@2 just before its card is written."""
    other = opened()
    card = other.register("json", adapter)

    def remove_first(path: str) -> None:
        if path.endswith("/2/card.json"):
            files.before_write = lambda path: None
            other.remove("json@2")

    files.before_write = remove_first
    return card


def test_a_version_that_is_removed_while_it_is_copied_is_not_reported_as_stored(
    faulty: RemoteRegistry, removed_meanwhile: AdapterCard, opened: Opener, adapter: Path
):
    with pytest.raises(AdapterExistsError, match="taken"):
        faulty.publish(removed_meanwhile.model_copy(update={"version": 2}), adapter)
    assert [card.version for card in opened().versions("json")] == [1]


@pytest.mark.usefixtures("removed_meanwhile")
def test_a_version_that_is_removed_while_it_is_registered_gets_the_next_number(
    faulty: RemoteRegistry, opened: Opener, adapter: Path
):
    assert faulty.register("json", adapter).version == 3
    assert [card.version for card in opened().versions("json")] == [1, 3]


def test_a_change_lists_its_own_adapter_alone(opened: Opener, adapter: Path, monkeypatch: pytest.MonkeyPatch):
    """Else the time of a change grows with the registry, and that of many changes with its square."""
    opened(refresh=3600).register("sql", adapter)
    registry = opened(refresh=3600)
    registry.refresh()
    listed, objects = [], ObjectStore.objects

    def counting(self: ObjectStore, prefix: str = "") -> Any:
        listed.append(prefix)
        return objects(self, prefix)

    monkeypatch.setattr(ObjectStore, "objects", counting)
    registry.register("json", adapter)
    registry.alias("json", "prod", 1)
    registry.update("json", description="new")
    registry.publish(registry.get("json").model_copy(update={"version": 2}), adapter)
    registry.remove("json@2")
    assert set(listed) == {"json", ".versions/json"}
    assert [card.ref for card in registry.list()] == ["json@1", "sql@1"]
    assert registry.get("json@prod").description == "new"


def test_each_card_is_one_request_and_is_asked_for_once(
    opened: Opener, adapter: Path, monkeypatch: pytest.MonkeyPatch
):
    writer = opened(refresh=3600)
    for name in ("json", "sql"):
        writer.register(name, adapter)
    asked: list[tuple[str, str]] = []
    for method in ("content", "_info"):
        monkeypatch.setattr(ObjectStore, method, _asking(asked, method, getattr(ObjectStore, method)))
    reader = opened(refresh=3600)
    reader.refresh()
    reader.refresh()
    assert sorted(path for method, path in asked if method == "content") == [
        "json/1/card.json",
        "sql/1/card.json",
    ]
    assert [path for method, path in asked if method == "_info"] == [".stamp", ".stamp"]


def _asking(asked: list[tuple[str, str]], method: str, ask: Callable[..., Any]) -> Callable[..., Any]:
    def asking(self: ObjectStore, path: str, *arguments: Any) -> Any:
        asked.append((method, path))
        return ask(self, path, *arguments)

    return asking


def test_an_object_named_like_an_adapter_is_ignored(opened: Opener, adapter: Path, objects: dict[str, bytes]):
    objects["sql"] = b""
    opened().register("json", adapter)
    assert opened().names() == ["json"]
    assert opened().verify() == []


def test_a_change_that_is_undone_while_it_is_read_is_not_remembered():
    """An alias goes from 1 to 2 between listing and reading, and back to 1, which has the ETag of before."""
    etags, store = {1: "one", 2: "two"}, Mock()

    def stored(alias: int, modified: str) -> None:
        store.objects.side_effect = lambda prefix="": {
            "json/refs.json": StoredObject(100, etags[alias], modified)
        }

    def read(alias: int) -> RemoteCatalog:
        store.content.return_value = Refs().with_alias("prod", Alias.of(alias)).to_json()
        return read_catalog(store, known)

    known = RemoteCatalog()
    stored(1, "10:00:00")
    known = read(2)
    assert known.refs("json").aliases["prod"].version == 2
    stored(1, "10:00:05")
    assert read(1).refs("json").aliases["prod"].version == 1
