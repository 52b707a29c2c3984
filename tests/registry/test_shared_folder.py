"""A registry on a file system that other machines share: what it does where file locks are missing or lie."""

from __future__ import annotations

import errno
import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from adapterhub import AdapterRegistry, RegistryError
from adapterhub.registry import store
from tests.registry.maker import make_adapter


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_changes_are_refused(
    registry: AdapterRegistry, adapter: Path, monkeypatch: pytest.MonkeyPatch, code: int
):
    def refuse(*arguments: object) -> None:
        raise OSError(code, "no locks")

    registry.register("json", adapter)
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(RegistryError, match="could not be changed"):
        registry.register("json", adapter)
    with pytest.raises(RegistryError, match="could not be changed"):
        registry.alias("json", "prod", 1)
    assert [card.ref for card in registry.versions("json")] == ["json@1"]
    assert registry.get("json").aliases == ()


def test_with_locks_that_do_not_reach_other_machines_versions_stay_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As with the mount option `nolock`: two writers take the same number, and one is refused."""

    @contextmanager
    def no_lock(*arguments: object) -> Iterator[None]:
        yield

    monkeypatch.setattr(store, "writers_lock", no_lock)
    adapters = [make_adapter(tmp_path / f"{seed}", seed=seed) for seed in range(4)]
    done: list[str] = []

    def register(path: Path) -> None:
        with suppress(RegistryError):
            done.append(AdapterRegistry(tmp_path / "shared").register("json", path).digest)

    threads = [threading.Thread(target=register, args=(path,)) for path in adapters]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    registry = AdapterRegistry(tmp_path / "shared")
    assert done
    assert sorted(card.digest for card in registry.versions("json")) == sorted(done)
    assert registry.verify() == []


def test_a_change_by_another_process_changes_the_stamp(registry: AdapterRegistry, adapter: Path):
    """Two calls of stat, however many adapters there are."""
    other = AdapterRegistry(registry.root)
    registry.register("json", adapter)
    for change in (
        lambda: registry.alias("json", "prod", 1),
        lambda: registry.update("json", description="new"),
        lambda: registry.remove("json", force=True),
    ):
        before = other.stamp()
        change()
        assert other.stamp() != before
