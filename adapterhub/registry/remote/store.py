"""What a registry needs of the store that it is in: an object store (`object_store.py`) or the Hub (`hub_store.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class StoredObject:
    """An object as a listing shows it.

    Attributes:
        size: Its size in bytes.
        tag: Another one whenever the content is another: an ETag, a generation or a git object id.
        modified: When it was last written, where the store says so: a content that comes back has the same ETag.
    """

    size: int
    tag: str
    modified: str = ""


class Store(Protocol):
    """Objects under the path of a registry. Paths are relative to it.

    Reading methods raise `FileNotFoundError` for an object that is not there, `RegistryUnavailableError` or
    `RegistryError` where the store does not answer or refuses.
    """

    def stamp(self) -> str:
        """A value that is another one after every change made through a `RemoteRegistry`; costs one small request."""
        ...

    def objects(self, prefix: str = "") -> Mapping[str, StoredObject]:
        """All objects below a prefix: path -> object."""
        ...

    def read(self, path: str, limit: int) -> tuple[bytes, str]:
        """The content of an object and its tag.

        Raises:
            AdapterInvalidError: It has more than `limit` bytes.
        """
        ...

    def content(self, path: str, limit: int) -> bytes:
        """The content of an object, by one request; raises as `read`."""
        ...

    def read_start(self, path: str, size: int) -> bytes:
        """The first bytes of an object, at most `size`."""
        ...

    def download(self, path: str, target: Path, limit: int) -> None:
        """Writes an object's content to a new file.

        Raises:
            AdapterInvalidError: It has more than `limit` bytes.
        """
        ...

    def replace(self, path: str, content: bytes, tag: str | None) -> None:
        """Replaces an object if it still has this tag, or creates it if `tag` is None and there is none.

        Raises:
            ConflictError: It has another tag, or exists.
            RegistryError: The store cannot do that safely.
        """
        ...

    def publish(self, folder: Path, card: bytes, path: str, *, resume: bool) -> None:
        """Stores a version, so that readers see it whole or not at all.

        Args:
            folder: Its files.
            card: The content of `card.json`; one in the folder is left out.
            path: `name/version`.
            resume: Whether to go on with an unfinished upload of the same files.

        Raises:
            ConflictError: The version's number is taken.
        """
        ...

    def delete(self, paths: Sequence[str]) -> None:
        """Deletes objects; ones that are not there are no error."""
        ...
