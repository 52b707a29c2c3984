"""The list of a version's files, with their sizes and hashes.

In an object store it is written first, at `.versions/<name>/<version>.json`, and only if there is none: so it claims
the version's number. It stays when the version is removed, and the number is never given again.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapterhub._files import sha256_file
from adapterhub.errors import AdapterInvalidError, describe_validation
from adapterhub.registry.cards import CARD_FILE
from adapterhub.registry.sources import MAX_FILES, max_bytes, may_be_copied

MANIFESTS = ".versions"
MAX_MANIFEST_BYTES = 2**16
_PATH = re.compile(rf"{re.escape(MANIFESTS)}/(?P<name>[^/]+)/(?P<version>[1-9][0-9]{{0,8}})\.json")


def manifest_path(name: str, version: int) -> str:
    """Where the manifest of a version is."""
    return f"{MANIFESTS}/{name}/{version}.json"


def claimed_version(path: str) -> tuple[str, int] | None:
    """The name and version that a path is the manifest of."""
    match = _PATH.fullmatch(path)
    return (match["name"], int(match["version"])) if match else None


class FileEntry(BaseModel):
    """One file of a version."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """The files of a version without its card, which may change."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: Annotated[dict[str, FileEntry], Field(max_length=MAX_FILES)]

    @classmethod
    def of(cls, folder: Path) -> Self:
        """The manifest of a version's folder; what does not belong to an adapter is left out.

        Raises:
            AdapterInvalidError: There are more or larger files than an adapter may have, which no reader would accept.
        """
        paths = sorted(path for path in folder.iterdir() if _belongs(path))
        if len(paths) > MAX_FILES:
            raise AdapterInvalidError(
                f"The folder holds {len(paths)} files; an adapter has at most {MAX_FILES}."
            )
        for path in paths:
            check_file(path.name, path.stat().st_size)
        return cls(
            files={path.name: FileEntry(size=path.stat().st_size, sha256=sha256_file(path)) for path in paths}
        )

    @classmethod
    def from_json(cls, content: bytes) -> Self:
        """Parses a manifest.

        Raises:
            AdapterInvalidError: It is none.
        """
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            raise AdapterInvalidError(f"The manifest is damaged: {describe_validation(error)}.") from error

    def to_json(self) -> bytes:
        """Its content in the store."""
        return self.model_dump_json(indent=1).encode() + b"\n"


def _belongs(path: Path) -> bool:
    return may_be_copied(path.name) and path.is_file() and not path.is_symlink()


def check_file(name: str, size: int) -> None:
    """Returns if a version may have a file of this name and size.

    Raises:
        AdapterInvalidError: It may not: it is a path, may hold code, or is too large.
    """
    if name == CARD_FILE or "/" in name or not may_be_copied(name):
        raise AdapterInvalidError(f"{name[:80]!r} is not a file that an adapter may have.")
    if size > max_bytes(name):
        raise AdapterInvalidError(f"{name} has {size:,} bytes; at most {max_bytes(name):,} are accepted.")
