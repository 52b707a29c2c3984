"""A folder of downloaded versions, bounded in size, which the processes of a machine share.

A version is downloaded next to its place, checked, flushed and renamed, so a crash leaves nothing half. When there is
no room, the versions that were used longest ago are removed, but none that was used in the last minutes: an engine may
be reading it.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from adapterhub._files import new_folder, open_folder, os_errors_as, remove_abandoned
from adapterhub.errors import RegistryError, RegistryLockedError

IN_USE_S = 600.0
"""Seconds for which a version is not removed after it was asked for."""
_TOUCH_S = 60.0
_DOWNLOAD_S = 1800.0
_LOCKS = ".locks"
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}")  # as `new_folder` names them


class FileCache:
    """Downloaded folders, by key; any thread or process may use it.

    Args:
        root: The folder, on a local disk; it is created at the first download.
        max_bytes: Above it folders are removed. Those in use stay, so it may be exceeded.
        in_use_s: Seconds for which a folder stays after it was asked for.
    """

    def __init__(self, root: Path, max_bytes: int, *, in_use_s: float = IN_USE_S) -> None:
        self._root, self._max_bytes, self._in_use_s = root, max_bytes, in_use_s
        self._touched: dict[str, float] = {}

    def path(self, key: str) -> Path:
        """Where the folder of a key is or will be."""
        return self._root / key

    def get(self, key: str, download: Callable[[Path], object]) -> Path:
        """The folder of a key.

        Args:
            key: A file name.
            download: Fills an empty folder if there is none yet; what it raises is passed on, and nothing is kept.

        Raises:
            RegistryError: The folder cannot be written.
            RegistryLockedError: Another process has been downloading it for half an hour.
        """
        folder = self.path(key)
        if time.monotonic() - self._touched.get(key, -_TOUCH_S) < _TOUCH_S and folder.is_dir():
            return folder
        with os_errors_as(RegistryError, f"The cache {str(self._root)!r} cannot be written"):
            (self._root / _LOCKS).mkdir(parents=True, exist_ok=True)
            with self._lock(key):
                if not self._touch(key):
                    with new_folder(folder) as staging:
                        download(staging)
                    self._touch(key)
                    self._make_room(key)
        self._touched[key] = time.monotonic()
        return folder

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        try:
            with FileLock(self._root / _LOCKS / name, timeout=_DOWNLOAD_S):
                yield
        except Timeout as error:
            raise RegistryLockedError(
                f"Another process has held the lock of {name!r} in the cache for {_DOWNLOAD_S / 60:g} minutes.",
                hint="Try again.",
            ) from error

    def _touch(self, key: str) -> bool:
        """Marks a folder as used now; False if there is none."""
        with self._lock("room"):  # so that it is not removed in between
            try:
                os.utime(self.path(key))
            except FileNotFoundError:
                return False
        return True

    def _make_room(self, newest: str) -> None:
        with self._lock("room"), open_folder(self._root) as root:
            remove_abandoned(root, _TEMPORARY)
            folders = [
                path for path in self._root.iterdir() if path.is_dir() and not path.name.startswith(".")
            ]
            sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in folders}
            excess = sum(sizes.values()) - self._max_bytes
            for path in sorted(folders, key=lambda path: path.stat().st_mtime):
                is_idle = time.time() - path.stat().st_mtime >= self._in_use_s
                if excess > 0 and is_idle and path.name != newest:
                    self._remove(path)
                    excess -= sizes[path]

    def _remove(self, folder: Path) -> None:
        """Removes a folder, whose name is free at once."""
        removed = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
        folder.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)
