"""Writing that a crash cannot break: write aside, flush to disk, rename.

`rename` within one file system is atomic (POSIX): readers see the old state or the new, never a mixture.
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
    """Replaces a file's content in one step.

    Args:
        path: The file; its folder must exist.
        data: The whole new content.
        staging: Where to write first, on the same file system; beside the file if not given. A process that
            is killed leaves its unfinished file there.
    """
    aside = (staging or path.parent) / f".{path.name}.{uuid.uuid4().hex}"
    try:
        with aside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Makes a folder that appears whole or not at all.

    Yields a folder beside `target` to write into; on leaving without an exception it is flushed and renamed.

    Args:
        target: Where the folder is to appear; it must not exist, or be empty.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    aside.mkdir()
    try:
        yield aside
        sync_tree(aside)
        aside.rename(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


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
    """Reads a regular file that others may have written.

    Args:
        path: The file; a symbolic link, pipe or device is not read.
        limit: The most bytes that it may have.

    Raises:
        AdapterInvalidError: There is no such file, it is not regular, or it is too large.
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
