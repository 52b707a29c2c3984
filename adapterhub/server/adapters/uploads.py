"""Uploaded adapters: a zip archive of the files, received and unpacked within bounds.

Names in the archive are used as file names only where they have no folder, so nothing is written outside.
"""

from __future__ import annotations

import stat
import tempfile
import zipfile
import zlib
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import IO

from starlette.concurrency import run_in_threadpool

from adapterhub.errors import AdapterInvalidError
from adapterhub.registry.layout import Layout
from adapterhub.registry.staging import staging_folder

MAX_FILES = 64
_CHUNK_BYTES = 2**20
_MAX_READ_BYTES = 2 * _CHUNK_BYTES
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""What zip programs write by themselves; others may need gigabytes to unpack."""


async def receive_upload(chunks: AsyncIterator[bytes], file: IO[bytes]) -> None:
    """Writes a request's body, whose size the middleware bounds, to a file, off the event loop.

    Args:
        chunks: The body.
        file: An empty file.
    """
    buffer = bytearray()
    async for chunk in chunks:
        buffer += chunk
        if len(buffer) >= _CHUNK_BYTES:
            await run_in_threadpool(file.write, bytes(buffer))
            buffer.clear()
    await run_in_threadpool(file.write, bytes(buffer))


def upload_file(registry: Path) -> IO[bytes]:
    """A file on the registry's file system that has no name, so that nothing of it stays when the process ends."""
    registry.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=registry)


def upload_folder(registry: Path) -> AbstractContextManager[Path]:
    """A folder on the registry's file system for the unpacked files; removed at the end, or by the next writer."""
    return staging_folder(Layout(registry))


def unpack(archive: IO[bytes], folder: Path, max_bytes: int) -> None:
    """Unpacks a zip archive of one adapter's files, which may be in one folder.

    Args:
        archive: The archive.
        folder: An empty folder.
        max_bytes: The maximum size of all unpacked files.

    Raises:
        AdapterInvalidError: It is no zip archive, is damaged or encrypted, has a link, several folders or too many
            files, or unpacks to more than `max_bytes`.
    """
    try:
        with zipfile.ZipFile(_BoundedReads(archive)) as opened:
            members = _checked_members(opened, max_bytes)
            left = max_bytes
            for member, name in members:
                left -= _extract(opened, member, folder / name, left)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        # RuntimeError: encrypted. NotImplementedError: a feature of zip that Python has not.
        raise AdapterInvalidError(
            "The upload is not a zip archive that can be unpacked.",
            hint="Zip the folder that PEFT's save_pretrained wrote, without a password.",
        ) from error


class _BoundedReads:
    """A file for `zipfile`, which reads the whole list of members at once, however long the archive says it is."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """Reads up to 2 MiB.

        Raises:
            BadZipFile: More is asked for.
        """
        if size > _MAX_READ_BYTES:
            raise zipfile.BadZipFile
        return self._file.read(size if size >= 0 else _MAX_READ_BYTES)


def _checked_members(archive: zipfile.ZipFile, max_bytes: int) -> list[tuple[zipfile.ZipInfo, str]]:
    files = [member for member in archive.infolist() if not member.is_dir()]
    if len(files) > MAX_FILES:
        raise AdapterInvalidError(
            f"The archive holds {len(files)} files; an adapter has at most {MAX_FILES}."
        )
    paths = [PurePosixPath(member.filename) for member in files]
    if len({path.parent for path in paths}) > 1 or any(len(path.parts) > 2 for path in paths):
        raise AdapterInvalidError(
            "The archive holds more than one folder.",
            hint="Zip the files of one adapter, without subfolders.",
        )
    for member, path in zip(files, paths, strict=True):
        if not _is_plain(member, path):
            raise AdapterInvalidError(
                f"The archive holds {path.name[:80]!r}, which is no plain file below it."
            )
        if member.compress_type not in _COMPRESSIONS:
            raise AdapterInvalidError(
                f"The archive holds {path.name[:80]!r} in a compression that is not accepted.",
                hint="Store or deflate the files, as zip programs do by themselves.",
            )
    if len({path.name for path in paths}) < len(paths):
        raise AdapterInvalidError("The archive holds two files of the same name.")
    if sum(member.file_size for member in files) > max_bytes:
        raise _too_large(max_bytes)
    return [(member, path.name) for member, path in zip(files, paths, strict=True)]


def _is_plain(member: zipfile.ZipInfo, path: PurePosixPath) -> bool:
    kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the archive was not made on Unix
    name = path.name
    return (
        kind in (0, stat.S_IFREG)
        and not path.is_absolute()
        and ".." not in path.parts
        and not {"\\", "\0", ":"} & set(name)
        and 0 < len(name.encode()) <= 255
    )


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, max_bytes: int) -> int:
    """Extracts a file, and returns its size, which an archive may state wrongly."""
    size = 0
    with archive.open(member) as packed, target.open("xb") as file:
        while chunk := packed.read(_CHUNK_BYTES):
            size += len(chunk)
            if size > max_bytes:
                raise _too_large(max_bytes)
            file.write(chunk)
    return size


def _too_large(max_bytes: int) -> AdapterInvalidError:
    return AdapterInvalidError(f"The archive unpacks to more than {max_bytes:,} bytes.")
