"""Whatever the file system refuses is an error of adapterhub with a hint, and leaves a whole registry."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.errors import AdapterHubError, ConfigError, InvalidRequestError, RegistryError
from adapterhub.registry import AdapterRegistry
from tests.faults import failures

NUMBERS = itertools.count()
Change = Callable[[AdapterRegistry, Path], object]
CHANGES: dict[str, Change] = {
    "register": lambda registry, adapter: registry.register("json", adapter),
    "register a new name": lambda registry, adapter: registry.register(f"n{next(NUMBERS)}", adapter),
    "update": lambda registry, _: registry.update("json@1", description="new"),
    "alias": lambda registry, _: registry.alias("json", "prod", 1),
    "remove": lambda registry, _: registry.remove("json@latest"),
    "get": lambda registry, _: registry.get("json"),
    "list": lambda registry, _: registry.list(),
    "verify": lambda registry, _: registry.verify(),
}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_call_that_can_fail(
    registry: AdapterRegistry, adapter: Path, change: Change, code: int
) -> None:
    registry = AdapterRegistry(registry.root, lock_timeout=0.1)
    for _ in range(16 if change is CHANGES["remove"] else 1):
        registry.register("json", adapter)

    def clean() -> None:
        for residue in (registry.root / ".staging").iterdir():
            shutil.rmtree(residue)

    found = list(failures(lambda: change(registry, adapter), code, clean=clean))
    assert registry.verify() == []
    for error in found:
        assert isinstance(error, AdapterHubError), repr(error)
        assert error.hint, repr(error)
        assert os.strerror(code) in error.message
    assert len(found) >= 1 if change is not CHANGES["verify"] else True


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "Free space"), (errno.EROFS, "read-only")])
def test_the_hint_fits_the_reason(registry: AdapterRegistry, adapter: Path, code: int, words: str) -> None:
    hints = [str(error.hint) for error in failures(lambda: registry.register("json", adapter), code)]  # type: ignore[attr-defined]
    assert sum(words in hint for hint in hints) > len(hints) / 2, hints


def test_a_source_that_cannot_be_read_is_not_blamed_on_the_registry(
    registry: AdapterRegistry, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(adapter))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(RegistryError, match=r"The folder 'adapter' cannot be read: Permission denied"):
        registry.register("json", adapter)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_blend_without_room(tmp_path: Path, adapter: Path, code: int) -> None:
    from adapterhub.lora.blending.registering import blend_adapters

    registry = AdapterRegistry(tmp_path / "registry")
    for name in ("one", "two"):
        registry.register(name, adapter)
    for error in failures(lambda: blend_adapters(registry, "both", "one:0.5+two:0.5"), code):
        assert isinstance(error, AdapterHubError), repr(error)
        assert error.hint
    assert registry.verify() == []


def test_no_folder_for_temporary_files(
    tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adapterhub.lora.blending.registering import blend_adapters

    registry = AdapterRegistry(tmp_path / "registry")
    for name in ("one", "two"):
        registry.register(name, adapter)

    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(RegistryError, match="No usable temporary directory") as caught:
        blend_adapters(registry, "both", "one:0.5+two:0.5")
    assert "TMPDIR" in str(caught.value.hint)


NO_PATHS = ["a\0b", "\ud800", "~no-such-user/adapters", "x" * 5000]


@pytest.mark.parametrize("path", NO_PATHS, ids=["NUL", "surrogate", "user", "long"])
def test_what_is_no_path(registry: AdapterRegistry, adapter: Path, path: str) -> None:
    from adapterhub.base.locating import locate_base

    for call, kind in (
        (lambda: registry.register("json", path), InvalidRequestError),
        (lambda: registry.register("json", adapter, base=path), ConfigError),
        (lambda: locate_base(Path(path)), ConfigError),
        (lambda: AdapterRegistry(path).verify(), AdapterHubError),
        (lambda: AdapterRegistry(path).list(), AdapterHubError),
    ):
        with pytest.raises(kind) as caught:
            call()
        assert caught.value.hint
        caught.value.message.encode()
    assert registry.list() == []
