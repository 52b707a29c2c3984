"""`SHA256SUMS`: the digests of a folder's files, for `sha256sum --check SHA256SUMS`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adapterhub._files import sha256_file

CHECKSUMS_FILE = "SHA256SUMS"
"""The digests of all other files in the folder."""


def write_checksums(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Writes the digests of all files in a folder, which has no folders.

    Args:
        folder: The folder.
        known: File -> sha256, of those that need not be read again.
    """
    files = sorted(path.name for path in folder.iterdir() if path.name != CHECKSUMS_FILE)
    lines = (f"{(known or {}).get(name) or sha256_file(folder / name)}  {name}\n" for name in files)
    (folder / CHECKSUMS_FILE).write_text("".join(lines), encoding="utf-8")
