"""Atomic writes of files and folders: write to a temporary path, flush to disk, rename.

`rename` within one file system is atomic (POSIX), so readers see the old content or the new one. Also bounded reads.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapterhub.errors import AdapterInvalidError


def write_atomic(path: Path, data: bytes, *, staging: Path | None = None) -> None:
    """Replaces the content of a file atomically.

    Args:
        path: The file; its folder must exist.
        data: The new content.
        staging: Folder for the temporary file, on the same file system; that of `path` if not given. A
            process that is killed leaves the temporary file there.
    """
    temporary = (staging or path.parent) / f".{path.name}.{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Creates a folder with its content atomically.

    Yields a temporary folder next to `target` to write into. At the end it is flushed and renamed to `target`; after an
    exception it is removed.

    Args:
        target: The new folder. It must not exist, or be empty.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        yield temporary
        sync_tree(temporary)
        temporary.rename(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Flushes every file and folder under `folder` to disk."""
    for path in folder.rglob("*"):
        sync_folder(path)
    sync_folder(folder)


def sync_folder(path: Path) -> None:
    """Flushes one file or folder entry to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_bounded(path: Path, limit: int) -> bytes:
    """Reads an untrusted file: a regular one of bounded size.

    Args:
        path: The file. Symbolic links, pipes and devices are refused.
        limit: Maximum size in bytes.

    Raises:
        AdapterInvalidError: The file does not exist, is not regular, or is too large.
    """
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise AdapterInvalidError(
                f"{path.name} is not a regular file.", hint="Copy the file itself there."
            )
        if status.st_size > limit:
            raise AdapterInvalidError(
                f"{path.name} has {status.st_size:,} bytes; at most {limit:,} are read."
            )
        return path.read_bytes()
    except OSError as error:
        raise AdapterInvalidError(f"{path.name} cannot be read: {error.strerror}.") from error
