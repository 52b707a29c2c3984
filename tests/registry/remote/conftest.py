from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from adapterhub.registry.remote import RemoteRegistry, open_registry
from tests.registry.maker import make_adapter

REFRESH = 0.02


@pytest.fixture
def url() -> Iterator[str]:
    name = uuid.uuid4().hex
    yield f"memory://{name}"
    if MemoryFileSystem().exists(f"/{name}"):
        MemoryFileSystem().rm(f"/{name}", recursive=True)


@pytest.fixture
def opened(url: str, tmp_path: Path) -> Iterator[Callable[..., RemoteRegistry]]:
    """Opens the registry, each time with a cache of its own, as on another machine."""
    registries: list[RemoteRegistry] = []

    def open_one(**options: Any) -> RemoteRegistry:
        cache = options.pop("cache", tmp_path / f"cache-{len(registries)}")
        registry = open_registry(url, cache=cache, **{"refresh": REFRESH, **options})
        assert isinstance(registry, RemoteRegistry)
        registries.append(registry)
        return registry

    yield open_one
    for registry in registries:
        registry.close()


@pytest.fixture
def remote(opened: Callable[..., RemoteRegistry]) -> RemoteRegistry:
    return opened()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "adapter")


@pytest.fixture
def objects(url: str) -> dict[str, bytes]:
    """What is in the store: path below the registry -> content; changes are writes behind the registry's back."""
    return _Objects(url.removeprefix("memory:/"))


class _Objects(dict[str, bytes]):
    def __init__(self, root: str) -> None:
        self._root, self._fs = root, MemoryFileSystem()

    def __getitem__(self, path: str) -> bytes:
        content: bytes = self._fs.cat_file(f"{self._root}/{path}")
        return content

    def __setitem__(self, path: str, content: bytes) -> None:
        self._fs.pipe_file(f"{self._root}/{path}", content)

    def __delitem__(self, path: str) -> None:
        self._fs.rm_file(f"{self._root}/{path}")

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(path.removeprefix(f"{self._root}/") for path in self._fs.find(self._root)))
