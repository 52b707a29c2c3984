"""The folders of this machine that clients may register adapters from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adapterhub.errors import AdapterNotFoundError
from adapterhub.server.access.errors import PermissionDeniedError

_MAX_PATH = 4096


def allowed_folder(path: str, folders: Sequence[Path]) -> Path:
    """The folder that a client names, if it lies in one of the allowed ones once links are followed.

    Args:
        path: An absolute path, or one below an allowed folder.
        folders: The allowed folders.

    Raises:
        PermissionDeniedError: No folder is allowed, or the path lies in none of them.
        AdapterNotFoundError: There is no such folder in them.
    """
    if not folders:
        raise PermissionDeniedError(
            "This server registers adapters from no folder.",
            hint="Start it with --adapter-folder, or upload the files.",
        )
    if "\0" in path or len(path) > _MAX_PATH:
        raise _not_found(path)
    roots = [folder.expanduser().resolve() for folder in folders]
    try:
        candidates = [(root, (root / path).resolve()) for root in roots]
        inside = [found for root, found in candidates if found.is_relative_to(root)]
        if not inside:
            raise PermissionDeniedError(
                f"{path!r} is in none of the folders that adapters may be registered from.",
                hint="Put it in one of them, or upload the files.",
            )
        found = next((folder for folder in inside if folder.is_dir()), None)
    except (OSError, RuntimeError):  # a name that is too long, links that lead in a circle
        found = None
    if found is None:
        raise _not_found(path)
    return found


def _not_found(path: str) -> AdapterNotFoundError:
    return AdapterNotFoundError(
        f"No adapter found for {path[:200]!r}.", hint="Check the path of the folder with adapter_config.json."
    )
