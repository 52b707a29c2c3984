"""Atomic writes of files and folders: write to a temporary path, flush to disk, rename.

`rename` within one file system is atomic (POSIX), so readers see the old content or the new one. A temporary file or
folder is locked while its process lives; what a killed process has left is removed by the next write to the same place.

Also bounded reads, folders opened without following links, paths of users, and what an `OSError` means for the reader.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

from adapterhub.errors import AdapterHubError, AdapterInvalidError

# A temporary file is locked a moment after it is made.
_UNLOCKED_S = 10.0
_PREFIX = "adapterhub-tmp-"
_TEMPORARY_FOLDER = re.compile(rf"{_PREFIX}[a-z0-9_]{{8}}")  # as tempfile names them
_HINTS = {
    errno.ENOSPC: "Free space on that disk.",
    errno.EDQUOT: "Free space, or raise the disk quota.",
    errno.EACCES: "Check the permissions of the file and of its folder.",
    errno.EPERM: "Check the permissions of the file and of its folder.",
    errno.EROFS: "The file system is read-only; choose another place.",
    errno.EIO: "The disk reports an error; check it.",
    errno.ENAMETOOLONG: "Give a shorter path.",
    errno.ENOENT: "Check that it is there and that its path is right.",
    errno.EMFILE: "Raise the limit of open files (ulimit -n).",
}


def write_atomic(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Replaces the content of a file atomically.

    Args:
        path: The file; its folder must exist.
        data: The new content.
        mode: The file's permissions, less those that the process's umask takes away.
    """
    with atomic_file(path, mode=mode) as file:
        file.write(data)


@contextmanager
def atomic_file(path: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Yields a file to write, which at the end replaces the one at `path`; after an exception that one stays.

    Args:
        path: The file; its folder must exist.
        mode: See `write_atomic`.
    """
    _remove_abandoned_siblings(path)
    temporary = path.parent / _temporary_name(path)
    try:
        with open(temporary, "xb", opener=partial(os.open, mode=mode)) as file:
            hold(file.fileno())
            yield file
            _flush(file)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_new(path: Path, data: bytes) -> None:
    """Writes a file that does not exist yet, and flushes it to disk."""
    with path.open("xb") as file:
        file.write(data)
        _flush(file)


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Creates a folder with its content atomically.

    Yields a temporary folder next to `target` to write into. At the end it is flushed and renamed to `target`; after an
    exception it is removed.

    Args:
        target: The new folder. It must not exist, or be empty.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned_siblings(target)
    temporary = target.parent / _temporary_name(target)
    temporary.mkdir()
    try:
        with open_folder(temporary) as descriptor:
            hold(descriptor)
            yield temporary
            _give_the_folders_permissions(temporary)
            sync_tree(temporary)
            temporary.rename(target)
        sync_folder(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _give_the_folders_permissions(folder: Path) -> None:
    """Opens files to those who may read the folder: safetensors makes them for their owner alone."""
    readers = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(path.stat().st_mode | readers)


def _temporary_name(target: Path) -> str:
    return f".{target.name}.{uuid.uuid4().hex}"


def _remove_abandoned_siblings(target: Path) -> None:
    temporary = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{32}}")
    with open_folder(target.parent) as folder:
        remove_abandoned(folder, temporary)


def hold(descriptor: int) -> bool:
    """Marks a file or folder as in use until its descriptor is closed or this process dies; False if it is already."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems have no locks; there nothing counts as abandoned
        return True
    return True


def remove_abandoned(folder: int, names: re.Pattern[str]) -> None:
    """Removes the temporary files and folders of processes that have ended.

    Args:
        folder: The descriptor of the folder that holds them.
        names: What their names match.
    """
    with os.scandir(folder) as entries:
        found = [entry.name for entry in entries]
    for name in found:
        if names.fullmatch(name) and _is_abandoned(name, folder):
            shutil.rmtree(name, ignore_errors=True, dir_fd=folder)
            with suppress(OSError):
                os.unlink(name, dir_fd=folder)


def _is_abandoned(name: str, folder: int) -> bool:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError:
        return False
    try:
        if time.time() - os.fstat(descriptor).st_mtime <= _UNLOCKED_S:
            return False  # before the lock is tried, which could keep the writer from getting it
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:  # its writer holds the lock
        return False
    finally:
        os.close(descriptor)


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


@contextmanager
def open_folder(root: Path, *names: str) -> Iterator[int]:
    """Opens the folder `root/names[0]/...`; yields a descriptor for calls that take `dir_fd`.

    Args:
        root: May be reached through symbolic links.
        names: Folders below `root`, where no link is followed.

    Raises:
        NotADirectoryError: A link or a file is in the place of a folder.
    """
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in names:
            below = _open_below(name, descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def _open_below(name: str, folder: int) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:  # macOS; Linux raises NotADirectoryError
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), name) from error
        raise


def open_regular(path: str | Path, *, follow_links: bool = False, dir_fd: int | None = None) -> BinaryIO:
    """Opens an untrusted file for reading, without waiting for the writer of a pipe.

    Args:
        path: The file.
        follow_links: Whether `path` may be a symbolic link; folders above it may always be.
        dir_fd: The folder that `path` is relative to.

    Raises:
        AdapterInvalidError: It is no regular file: a link, folder, pipe or device.
        OSError: It cannot be opened.
    """
    name = Path(path).name
    try:
        links = 0 if follow_links else os.O_NOFOLLOW
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | links, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a socket
            raise _not_regular(name) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _not_regular(name)
    return os.fdopen(descriptor, "rb")


def _not_regular(name: str) -> AdapterInvalidError:
    return AdapterInvalidError(f"{name} is not a regular file.", hint="Copy the file itself there.")


LFS_HEAD_BYTES = 40
_LFS_HEAD = b"version https://git-lfs"


def refuse_lfs_pointer(name: str, head: bytes) -> None:
    """Refuses a file that Git LFS has not downloaded yet.

    Args:
        name: The file's name.
        head: Its first `LFS_HEAD_BYTES` bytes.

    Raises:
        AdapterInvalidError: It is a pointer, which Git holds in the file's place.
    """
    if head.startswith(_LFS_HEAD):
        raise AdapterInvalidError(
            f"{name} is a Git-LFS pointer: the file itself was not downloaded.",
            hint="Run `git lfs install && git lfs pull` in its repository, or download it with `hf download`.",
        )


def read_regular(
    path: str | Path, limit: int, *, follow_links: bool = False, dir_fd: int | None = None
) -> bytes:
    """Reads an untrusted file: a regular one of bounded size.

    Args:
        path: The file.
        limit: Maximum size in bytes.
        follow_links: As for `open_regular`.
        dir_fd: As for `open_regular`.

    Raises:
        AdapterInvalidError: The file is not regular, or is too large.
        OSError: It does not exist or cannot be read.
    """
    with open_regular(path, follow_links=follow_links, dir_fd=dir_fd) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise AdapterInvalidError(f"{Path(path).name} has {size:,} bytes; at most {limit:,} are read.")
        return file.read(limit)


def read_bounded(
    path: str | Path, limit: int, *, follow_links: bool = False, dir_fd: int | None = None
) -> bytes:
    """As `read_regular`, but whatever keeps it from being read is an `AdapterInvalidError`."""
    try:
        return read_regular(path, limit, follow_links=follow_links, dir_fd=dir_fd)
    except OSError as error:
        raise AdapterInvalidError(
            f"{Path(path).name} cannot be read: {error.strerror}.", hint=_hint(error)
        ) from error


@contextmanager
def os_errors_as(kind: type[AdapterHubError], what: str) -> Iterator[None]:
    """Raises an `OSError` from inside as an error of adapterhub, with a hint for its reason.

    Args:
        kind: The error to raise.
        what: The first part of its message, as in "The router could not be saved".
    """
    try:
        yield
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise kind(f"{what}: {error.strerror or error}{place}.", hint=_hint(error)) from error


def _hint(error: OSError) -> str:
    return _HINTS.get(error.errno or 0, "Check permissions and free space.")


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder in the system's place for temporary files, removed at the end.

    Those that killed processes have left there are removed first.

    Raises:
        OSError: It cannot be made; without any place for temporary files a `FileNotFoundError`.
    """
    place = Path(tempfile.gettempdir())
    with suppress(OSError), open_folder(place) as listed:  # it may be writable but not readable
        remove_abandoned(listed, _TEMPORARY_FOLDER)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as folder, open_folder(Path(folder)) as descriptor:
        hold(descriptor)
        yield Path(folder)


@contextmanager
def scratch_folder(kind: type[AdapterHubError], what: str) -> Iterator[Path]:
    """A `temporary_folder`, with the `OSError`s from inside as errors of adapterhub.

    Args:
        kind: As for `os_errors_as`.
        what: As for `os_errors_as`.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        hint = "Free space there, or set TMPDIR to another folder."
        raise kind(f"{what}: {error.strerror}.", hint=hint) from error
    with os_errors_as(kind, what), temporary_folder() as folder:
        yield folder


def user_path(path: str | Path, kind: type[AdapterHubError]) -> Path:
    """The path that a user gave, with `~` expanded.

    Raises:
        kind: No file can have that path, or `~` names an unknown user.
    """
    try:
        expanded = Path(path).expanduser()
        if b"\0" not in os.fsencode(expanded):
            return expanded
    except (TypeError, ValueError, RuntimeError) as error:
        raise kind(
            f"{str(path)[:200]!r} is not a path.", hint="Give the path of a file or folder."
        ) from error
    raise kind(f"{str(path)[:200]!r} is not a path.", hint="It holds a NUL character.")


def check_writable_folder(folder: Path, kind: type[AdapterHubError], what: str) -> None:
    """Refuses a folder that files could not be written to, whether it exists or is to be made, and changes nothing.

    Args:
        folder: The folder.
        kind: The error to raise.
        what: The first part of its message, as in "output_dir 'results'".

    Raises:
        kind: A file is in its place, or it, or the folder to make it in, is read-only.
    """
    with os_errors_as(kind, f"{what} cannot be written"):
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise kind(
                f"{what} is no folder: {existing.name!r} is a file.", hint="Choose another, or move the file."
            )
        if not os.access(existing, os.W_OK | os.X_OK):
            raise kind(f"{what} cannot be written.", hint="Check its permissions, or choose another.")


def is_folder(path: Path, kind: type[AdapterHubError]) -> bool:
    """Whether there is such a folder.

    Raises:
        kind: That cannot be told, for example for want of permission.
    """
    with os_errors_as(kind, f"{str(path)[:200]!r} cannot be read"):
        return path.is_dir()
