"""Checks that the files of stored adapters are those that were registered, whenever they are read.

A file is hashed once: as long as size, times and inode are those of the last time, it is not read again.
"""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

from adapterhub.errors import AdapterInvalidError
from adapterhub.lora.request import LoraRequest, stored_parts
from adapterhub.peft_format.checks import check_digest
from adapterhub.peft_format.config import CONFIG_FILE, WEIGHTS_FILE, AdapterConfig, adapter_digest

Stamp = tuple[tuple[int, ...], ...]


class DigestCheck:
    """Compares the files of adapters with the digests of their requests. Any thread may call it.

    Args:
        further: A further check of a folder's files, made whenever they are hashed.
    """

    def __init__(self, further: Callable[[Path], None] = lambda folder: None) -> None:
        self._further = further
        self._checked: dict[Path, tuple[str, Stamp]] = {}

    def __call__(self, adapter: LoraRequest) -> None:
        """Checks a stored adapter, or every part of a blend.

        Raises:
            AdapterInvalidError: The files have changed since they were registered, or cannot be read.
            AdapterIncompatibleError: The config describes a kind of adapter that cannot be served.
        """
        for stored in stored_parts(adapter):
            seen = (stored.digest, _stamp(stored.folder))
            if self._checked.get(stored.folder) != seen:
                settings = AdapterConfig.read(stored.folder).settings
                found = adapter_digest(settings, stored.folder / WEIGHTS_FILE)
                check_digest(stored.name, stored.digest, found)
                self._further(stored.folder)
                self._checked[stored.folder] = seen


def _stamp(folder: Path) -> Stamp:
    """What changes with a file's content; the time of change (ctime) cannot be set by a program."""
    try:
        found = [(folder / file).lstat() for file in (CONFIG_FILE, WEIGHTS_FILE)]
    except OSError as error:
        raise AdapterInvalidError(f"{Path(error.filename).name} cannot be read: {error.strerror}.") from error
    if not all(stat.S_ISREG(one.st_mode) for one in found):  # a link may lead to a device that never ends
        raise AdapterInvalidError(
            f"{CONFIG_FILE} or {WEIGHTS_FILE} in {folder.name!r} is not a regular file."
        )
    return tuple((one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_dev, one.st_ino) for one in found)
