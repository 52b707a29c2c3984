"""Unfinished writes: a folder of its own in `.staging` for each change, and the lock of writers."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from adapterhub._files import hold, open_regular, os_errors_as, remove_abandoned
from adapterhub.errors import RegistryError, RegistryLockedError
from adapterhub.registry.layout import LOCK, STAGING, Layout

_ANY = re.compile(".+", re.DOTALL)


@contextmanager
def staging_folder(layout: Layout) -> Iterator[Path]:
    """Creates a folder on the registry's file system; it is removed at the end with its content.

    Raises:
        RegistryError: It cannot be created, or an `OSError` comes from inside.
        AdapterInvalidError: `.staging` is a symbolic link.
    """
    with os_errors_as(RegistryError, f"The registry {str(layout.root)!r} could not be changed"):
        layout.root.mkdir(parents=True, exist_ok=True)
        with layout.open() as root, suppress(FileExistsError):
            os.mkdir(STAGING, dir_fd=root)
        with layout.open(STAGING) as staging:
            name = uuid.uuid4().hex
            os.mkdir(name, dir_fd=staging)
            try:
                with layout.open(STAGING, name) as folder:
                    hold(folder)
                    yield layout.root / STAGING / name
            finally:
                shutil.rmtree(name, ignore_errors=True, dir_fd=staging)


@contextmanager
def writers_lock(layout: Layout, timeout: float) -> Iterator[None]:
    """Holds the lock that admits one writer at a time, and removes what killed writers have left.

    Args:
        layout: The registry, whose folder exists.
        timeout: Seconds to wait for another writer.

    Raises:
        RegistryLockedError: Another writer held it all the time.
        AdapterInvalidError: `.lock` is a symbolic link.
    """
    with layout.open() as root, suppress(FileNotFoundError), open_regular(LOCK, dir_fd=root):
        pass  # it is no link, pipe or device
    try:
        with FileLock(layout.root / LOCK, timeout=timeout):
            with layout.open(STAGING) as staging:
                remove_abandoned(staging, _ANY)
            yield
    except Timeout as error:
        raise RegistryLockedError(
            f"The registry's lock could not be acquired within {timeout:g} s: another writer holds it.",
            hint="Try again. The lock of a process that has ended is released by the operating system.",
        ) from error
