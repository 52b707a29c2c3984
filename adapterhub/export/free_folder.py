"""The folder that an export makes: new, or empty."""

from __future__ import annotations

from pathlib import Path

from adapterhub._files import os_errors_as, user_path
from adapterhub.errors import ExportError


def free_folder(out: str | Path) -> Path:
    """The path that a user gave, if a folder can be made there.

    Args:
        out: The path; `~` is expanded.

    Raises:
        ExportError: It is no path, or there is a file or a folder that is not empty.
    """
    folder = user_path(out, ExportError)
    with os_errors_as(ExportError, f"{str(folder)!r} cannot be used"):
        free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not free:
        raise ExportError(
            f"{str(folder)!r} exists and is not empty.",
            hint="Give a folder that does not exist yet, or remove it first.",
        )
    return folder
