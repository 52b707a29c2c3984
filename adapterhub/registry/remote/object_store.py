"""A registry in an object store, through fsspec.

    <prefix>/.versions/<name>/<version>.json   manifest; written first, by an exclusive create: it claims the number
    <prefix>/<name>/<version>/<file>           the files
    <prefix>/<name>/<version>/card.json        written last: the version exists from here on
    <prefix>/<name>/refs.json                  aliases, removed versions; only ever replaced under a condition
    <prefix>/.stamp                            replaced after every change, so that readers need not list everything

A writer that dies leaves a claim and perhaps files, which nobody reads. A folder that was copied to the store with
other tools has no manifests and is read all the same.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adapterhub.errors import AdapterInvalidError, RegistryError
from adapterhub.registry.cards import CARD_FILE, MAX_CARD_BYTES
from adapterhub.registry.remote.conditional import ConditionalWrites
from adapterhub.registry.remote.errors import ConflictError, store_errors
from adapterhub.registry.remote.manifest import MAX_MANIFEST_BYTES, Manifest, manifest_path
from adapterhub.registry.remote.store import StoredObject

_log = logging.getLogger(__name__)
STAMP = ".stamp"
_CHUNK_BYTES = 8 * 2**20
_TAGS = ("generation", "ETag", "etag", "created", "LastModified", "mtime")


class ObjectStore:
    """Objects below a path of an fsspec file system. Any thread may call any method.

    Args:
        fs: The file system, which caches no listings.
        root: The path of the registry in it.
        url: The registry's URL, for messages.
        writes: How the file system writes under a condition.
    """

    def __init__(self, fs: Any, root: str, url: str, writes: ConditionalWrites) -> None:
        self._fs, self._root, self._url, self._writes = fs, root.rstrip("/"), url, writes

    def stamp(self) -> str:
        """The tag of the stamp object; empty without one."""
        try:
            return self._info(STAMP).tag
        except FileNotFoundError:
            return ""

    def objects(self, prefix: str = "") -> Mapping[str, StoredObject]:
        """All objects below a prefix."""
        start = self._path(prefix) if prefix else self._root
        inside = f"{self._root}/"
        with store_errors(self._url, "listed"):
            try:
                found = self._fs.find(start, detail=True)
            except FileNotFoundError:
                return {}
            return {
                path.removeprefix(inside): _stored(info)
                for path, info in found.items()
                if path.startswith(inside)
            }

    def read(self, path: str, limit: int) -> tuple[bytes, str]:
        """The content of an object and its tag."""
        # The tag first: if the object is replaced in between, a write under the condition of this tag is refused.
        found = self._info(path)
        _check_size(path, found.size, limit)
        return self.content(path, limit) if found.size else b"", found.tag

    def content(self, path: str, limit: int) -> bytes:
        """The content of an object."""
        content = self.read_start(path, limit + 1)
        _check_size(path, len(content), limit)
        return content

    def read_start(self, path: str, size: int) -> bytes:
        """The first bytes of an object."""
        with store_errors(self._url, "read"):
            content: bytes = self._fs.cat_file(self._path(path), start=0, end=size)
        return content

    def download(self, path: str, target: Path, limit: int) -> None:
        """Writes an object's content to a new file."""
        done = 0
        with target.open("xb") as file:
            for chunk in self._chunks(path):
                done += len(chunk)
                _check_size(path, done, limit)
                file.write(chunk)

    def replace(self, path: str, content: bytes, tag: str | None) -> None:
        """Replaces an object under the condition of its tag, or creates it."""
        try:
            with store_errors(self._url, "changed"):
                if tag is None:
                    self._writes.create(self._path(path), content)
                else:
                    self._writes.replace(self._path(path), content, tag)
        except ConflictError:
            if not self._holds(path, content):  # a library that repeats a write may meet its own
                raise
        self._mark_changed()

    def publish(self, folder: Path, card: bytes, path: str, *, resume: bool) -> None:
        """Stores a version: claim, files, card."""
        name, _, version = path.partition("/")
        manifest = Manifest.of(folder)
        self._claim(manifest_path(name, int(version)), manifest.to_json(), resume)
        for file in manifest.files:
            with store_errors(self._url, "changed"):
                self._fs.put_file(str(folder / file), self._path(f"{path}/{file}"))
        self.replace(f"{path}/{CARD_FILE}", card, None)

    def delete(self, paths: Sequence[str]) -> None:
        """Deletes objects."""
        for path in paths:
            with store_errors(self._url, "changed"):
                try:
                    self._fs.rm_file(self._path(path))
                except FileNotFoundError:
                    continue
        self._mark_changed()

    def _chunks(self, path: str) -> Iterator[bytes]:
        """The content in parts; errors of who writes them to a disk are not the store's."""
        with store_errors(self._url, "read"), self._fs.open(self._path(path), "rb") as source:
            while chunk := source.read(_CHUNK_BYTES):
                yield chunk

    def _claim(self, path: str, manifest: bytes, resume: bool) -> None:
        try:
            with store_errors(self._url, "changed"):
                self._writes.create(self._path(path), manifest)
        except ConflictError:
            if not (resume and self.read(path, MAX_MANIFEST_BYTES)[0] == manifest):
                raise

    def _holds(self, path: str, content: bytes) -> bool:
        try:
            return self.read(path, MAX_CARD_BYTES)[0] == content
        except FileNotFoundError:
            return False

    def _mark_changed(self) -> None:
        """Replaces the stamp. If that fails, readers see the change when they list everything again."""
        try:
            with store_errors(self._url, "changed"):
                self._fs.pipe_file(self._path(STAMP), uuid.uuid4().hex.encode())
        except RegistryError as error:
            _log.warning("Readers see a change late: %s", error)

    def _info(self, path: str) -> StoredObject:
        with store_errors(self._url, "read"):
            return _stored(self._fs.info(self._path(path)))

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}"


def _stored(info: Mapping[str, Any]) -> StoredObject:
    tag = next((str(info[key]) for key in _TAGS if info.get(key)), "")
    return StoredObject(int(info["size"] or 0), tag, str(info.get("LastModified", "")))


def _check_size(path: str, size: int, limit: int) -> None:
    if size > limit:
        raise AdapterInvalidError(f"{path} has more than {limit:,} bytes, which is the most that is read.")
