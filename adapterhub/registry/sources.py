"""Locating an adapter's files, in a folder or a snapshot of a Hugging Face repository, and copying the safe ones.

Files that can hold code are not copied. Unpickling runs code, so pickled weights are never opened.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapterhub._files import is_folder, open_regular, os_errors_as, user_path
from adapterhub.errors import AdapterInvalidError, InvalidRequestError, RegistryError
from adapterhub.peft_format.checks import MAX_WEIGHTS_BYTES
from adapterhub.peft_format.config import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.registry.cards import CARD_FILE, Source

SAFE_PATTERNS = (WEIGHTS_FILE, "*.json", "*.txt", "*.jinja", "*.md", "LICENSE", "NOTICE")
"""The files that are copied: weights, config, tokenizer, chat template, documents."""

_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
# The largest is a tokenizer.json: 33 MB for a vocabulary of 260,000 tokens.
_MAX_FILE_BYTES = 64 * 2**20
_MAX_FILES = 64
_CHUNK_BYTES = 2**20
_HUB = re.compile(
    r"(?:hf://)?(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w./-]{1,100}))?"
)

Downloader = Callable[[str, str | None], Path]
"""(repository, revision) -> folder of the snapshot."""


@dataclass(frozen=True)
class AdapterFiles:
    """Where an adapter's files are, before they are checked.

    Attributes:
        folder: The folder with `adapter_config.json`.
        boundary: Symbolic links must stay within this folder. For a hub snapshot, which consists of links into
            the cache's blobs, it is the repository's folder in the cache; otherwise `folder` itself.
        source: The source to record on the card; None for a local folder.
    """

    folder: Path
    boundary: Path
    source: Source | None = None


def locate_adapter(path: str | Path, *, download: Downloader | None = None) -> AdapterFiles:
    """Locates the files of an adapter, downloading a hub snapshot if need be.

    Args:
        path: A folder, `organisation/name`, `organisation/name@revision` or
            `hf://organisation/name@revision`. A folder takes precedence over a repository of the same name.
        download: Replaces `huggingface_hub.snapshot_download`, for example in tests.

    Raises:
        InvalidRequestError: There is no such folder, and the path is not a hub id.
        RegistryError: The snapshot could not be downloaded.
        AdapterInvalidError: The folder holds no adapter.
    """
    folder = user_path(path, InvalidRequestError)
    hub = _HUB.fullmatch(path) if isinstance(path, str) else None
    if is_folder(folder, InvalidRequestError):
        return AdapterFiles(_adapter_folder(folder), folder)
    if hub is None:
        raise InvalidRequestError(
            f"There is no folder {str(path)!r}.",
            hint="Give the folder that PEFT's save_pretrained wrote, or a hub id.",
        )
    snapshot = _download(hub["repo"], hub["revision"], download or _snapshot)
    source = Source(uri=f"hf://{hub['repo']}", revision=snapshot.name)
    return AdapterFiles(_adapter_folder(snapshot), snapshot.parent.parent, source)


def _adapter_folder(folder: Path) -> Path:
    if (folder / CONFIG_FILE).exists():
        return folder
    subfolders = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}"))
    raise AdapterInvalidError(
        f"The folder {folder.name!r} holds no {CONFIG_FILE}, so it is not a PEFT adapter.",
        hint=f"Did you mean its folder {subfolders[-1]!r}?"
        if subfolders
        else "PEFT's save_pretrained writes one.",
    )


def _download(repo: str, revision: str | None, download: Downloader) -> Path:
    try:
        return download(repo, revision)
    except (OSError, ValueError) as error:  # huggingface_hub raises subclasses of these
        raise RegistryError(
            f"{repo!r} is not a local folder and could not be downloaded from the hub ({type(error).__name__}).",
            hint="Check the spelling and the network; for a private repository log in with `hf auth login`.",
        ) from error


def _snapshot(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, revision=revision, allow_patterns=list(SAFE_PATTERNS)))


def copy_adapter(files: AdapterFiles, target: Path) -> tuple[str, ...]:
    """Copies the safe files of an adapter.

    Args:
        files: Where they are.
        target: An empty folder.

    Returns:
        Warnings about skipped files.

    Raises:
        AdapterInvalidError: There are no safetensors weights, a symbolic link leads out of the folder, or
            there are too many or too large files.
    """
    with os_errors_as(AdapterInvalidError, f"The folder {files.folder.name!r} cannot be read"):
        entries = sorted(path for path in files.folder.iterdir() if not path.name.startswith("."))
    pickles = [path.name for path in entries if path.suffix in _PICKLES]
    _refuse_outward_links(entries, files.boundary)
    if not (files.folder / WEIGHTS_FILE).is_file():
        raise _no_weights(pickles)
    safe = [path for path in entries if path.is_file() and _is_safe(path)]
    if len(safe) > _MAX_FILES:
        raise AdapterInvalidError(f"The folder holds {len(safe)} files; an adapter has at most {_MAX_FILES}.")
    for path in safe:
        _check_size(path)
        _copy(path, target / path.name)
    return tuple(f"{name} was not copied: pickle files can run code" for name in pickles)


def _copy(source: Path, target: Path) -> None:
    with (
        os_errors_as(RegistryError, f"{source.name} could not be copied"),
        open_regular(source, follow_links=True) as opened,
        target.open("xb") as copy,
    ):
        shutil.copyfileobj(opened, copy, _CHUNK_BYTES)


def _is_safe(path: Path) -> bool:
    return path.name != CARD_FILE and any(path.match(pattern) for pattern in SAFE_PATTERNS)


def _check_size(path: Path) -> None:
    size, limit = path.stat().st_size, MAX_WEIGHTS_BYTES if path.name == WEIGHTS_FILE else _MAX_FILE_BYTES
    if size > limit:
        raise AdapterInvalidError(f"{path.name} has {size:,} bytes; at most {limit:,} are accepted.")


def _refuse_outward_links(entries: list[Path], boundary: Path) -> None:
    root = boundary.resolve()
    for path in entries:
        if path.is_symlink() and not path.resolve().is_relative_to(root):
            raise AdapterInvalidError(
                f"{path.name} is a symbolic link that leads out of the adapter's folder.",
                hint="Copy the file itself into the folder (cp -L). For a hub repository give its id.",
            )


def _no_weights(pickles: list[str]) -> AdapterInvalidError:
    if not pickles:
        return AdapterInvalidError(
            f"There is no {WEIGHTS_FILE} next to {CONFIG_FILE}.", hint="Copy it there."
        )
    return AdapterInvalidError(
        f"The adapter's weights are pickled ({', '.join(pickles[:3])}); opening them can run code.",
        hint="If you trust them, load them with PEFT on a machine that may run their code, and call "
        "save_pretrained(..., safe_serialization=True); or ask the author for safetensors.",
    )
