"""Whether a disk has room, asked before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path

from adapterhub._files import os_errors_as
from adapterhub.errors import ExportError

_SPARE_BYTES = 64 * 2**20  # tokenizer, config and the file system's own


def check_disk_space(out: Path, size_bytes: int) -> None:
    """Refuses an export that the disk has no room for.

    Args:
        out: The file or folder to write, which need not exist.
        size_bytes: What will be written at most, intermediate files included.

    Raises:
        ExportError: There is less free space on that disk.
    """
    with os_errors_as(ExportError, f"The disk of {str(out)!r} cannot be read"):
        place = next(path for path in (out, *out.absolute().parents) if path.exists())
        free = shutil.disk_usage(place).free
    if free < size_bytes + _SPARE_BYTES:
        raise ExportError(
            f"The export needs {size_bytes + _SPARE_BYTES:,} bytes; the disk of {str(out)!r} has {free:,} free.",
            hint="Free space there, or give a folder on another disk.",
        )
