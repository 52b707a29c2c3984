"""Locating an adapter's files, in a folder or a snapshot of a Hugging Face repository, and copying the safe ones.

Files that can hold code are not copied. Unpickling runs code, so pickled weights are never opened.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from adapterhub._files import (
    LFS_HEAD_BYTES,
    is_folder,
    open_regular,
    os_errors_as,
    refuse_lfs_pointer,
    user_path,
)
from adapterhub.errors import AdapterInvalidError, InvalidRequestError, RegistryError
from adapterhub.peft_format.checks import MAX_WEIGHTS_BYTES
from adapterhub.peft_format.config import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.registry.cards import CARD_FILE, Source
from adapterhub.registry.foreign_formats import describe_foreign, newest_subfolder
from adapterhub.registry.hub_address import HubAddress

SAFE_PATTERNS = (WEIGHTS_FILE, "*.json", "*.txt", "*.jinja", "*.md", "LICENSE", "NOTICE")
"""The files that are copied: weights, config, tokenizer, chat template, documents."""

_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
# The largest is a tokenizer.json: 33 MB for a vocabulary of 260,000 tokens.
_MAX_FILE_BYTES = 64 * 2**20
MAX_FILES = 64
"""The maximum number of an adapter's files."""
_CHUNK_BYTES = 2**20

Downloader = Callable[[str, str | None], Path]
"""(repository, revision) -> folder of the snapshot."""


@dataclass(frozen=True)
class AdapterFiles:
    """Where an adapter's files are, before they are checked.

    Attributes:
        folder: The folder with `adapter_config.json`.
        boundary: Symbolic links must stay within this folder. For a hub snapshot, which consists of links into
            the cache's blobs, it is the repository's folder in the cache; otherwise `folder` itself.
        source: The source to record on the card; None for a local folder outside the hub's cache.
    """

    folder: Path
    boundary: Path
    source: Source | None = None


def locate_adapter(path: str | Path, *, download: Downloader | None = None) -> AdapterFiles:
    """Locates the files of an adapter, downloading a hub snapshot if need be.

    Args:
        path: A folder, also one of the hub's cache; or a hub id such as `organisation/name`,
            `organisation/name/checkpoint-500`, `hf://organisation/name@revision` or a page's URL. A folder takes
            precedence over a repository of the same name.
        download: Replaces `huggingface_hub.snapshot_download`, for example in tests.

    Raises:
        InvalidRequestError: There is no such folder, and the path is not a hub id.
        RegistryError: The snapshot could not be downloaded.
        AdapterInvalidError: The folder holds no adapter.
    """
    folder = user_path(path, InvalidRequestError)
    if is_folder(folder, InvalidRequestError):
        cached = HubAddress.of_cached(folder)
        if cached is None:
            return AdapterFiles(_adapter_folder(folder, str(folder)), folder)
        address, boundary = cached
        source = Source(uri=address.uri, revision=address.revision)
        return AdapterFiles(_adapter_folder(folder, str(folder)), boundary, source)
    hub = HubAddress.parse(path) if isinstance(path, str) and not folder.is_file() else None
    if hub is None:
        raise _no_folder(folder)
    snapshot = _download(str(path), hub, download or partial(_snapshot, subfolder=hub.subfolder))
    found = _adapter_folder(snapshot / (hub.subfolder or ""), str(hub))
    return AdapterFiles(found, snapshot.parent.parent, Source(uri=hub.uri, revision=snapshot.name))


def _adapter_folder(folder: Path, name: str) -> Path:
    """Checks that a folder holds an adapter; `name` is what the caller would give for it."""
    if not folder.is_dir():
        raise AdapterInvalidError(f"There is no folder {name!r} on the hub.", hint="Check the spelling.")
    if (folder / CONFIG_FILE).exists():
        return folder
    what, hint = describe_foreign(folder) or (None, "PEFT's save_pretrained writes one.")
    if what is None and (newest := newest_subfolder(folder)):
        hint = f"Did you mean its folder '{name}/{newest}'?"
    elif folder.name.startswith("models--"):
        hint = f"It is a folder of the hub's cache; give the hub id: {folder.name[8:].replace('--', '/')!r}."
    reason = f": {what}" if what else ""
    raise AdapterInvalidError(
        f"The folder {name!r} holds no {CONFIG_FILE}, so it is not a PEFT adapter{reason}.", hint=hint
    )


def _no_folder(path: Path) -> InvalidRequestError:
    if path.is_file():
        return InvalidRequestError(
            f"{path.name!r} is a file.", hint=f"Give the folder that it is in: {str(path.parent)!r}."
        )
    return InvalidRequestError(
        f"There is no folder {str(path)!r}.",
        hint="Give the folder that PEFT's save_pretrained wrote, or a hub id.",
    )


def _download(path: str, hub: HubAddress, download: Downloader) -> Path:
    try:
        return download(hub.repo, hub.revision)
    except (OSError, ValueError) as error:  # huggingface_hub raises subclasses of these
        raise RegistryError(
            f"{path[:200]!r} is not a local folder and could not be downloaded from the hub ({type(error).__name__}).",
            hint="Check the spelling and the network; HF_HUB_OFFLINE must not be set, and a private repository needs "
            "`hf auth login`.",
        ) from error


def _snapshot(repo: str, revision: str | None, *, subfolder: str | None) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [f"{subfolder}/{pattern}" if subfolder else pattern for pattern in SAFE_PATTERNS]
    return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))


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
        raise _no_weights(files.folder, pickles)
    safe = [path for path in entries if path.is_file() and may_be_copied(path.name)]
    if len(safe) > MAX_FILES:
        raise AdapterInvalidError(f"The folder holds {len(safe)} files; an adapter has at most {MAX_FILES}.")
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
        refuse_lfs_pointer(source.name, opened.read(LFS_HEAD_BYTES))
        opened.seek(0)
        shutil.copyfileobj(opened, copy, _CHUNK_BYTES)


def may_be_copied(name: str) -> bool:
    """Whether a file of this name, other than the card, belongs to an adapter and holds no code."""
    return name != CARD_FILE and not name.startswith(".") and any(fnmatchcase(name, p) for p in SAFE_PATTERNS)


def max_bytes(name: str) -> int:
    """The maximum size of a file of an adapter."""
    return MAX_WEIGHTS_BYTES if name == WEIGHTS_FILE else _MAX_FILE_BYTES


def _check_size(path: Path) -> None:
    size, limit = path.stat().st_size, max_bytes(path.name)
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


def _no_weights(folder: Path, pickles: list[str]) -> AdapterInvalidError:
    if foreign := describe_foreign(folder):
        what, hint = foreign
        return AdapterInvalidError(f"There is no {WEIGHTS_FILE} next to {CONFIG_FILE}: {what}.", hint=hint)
    if not pickles:
        return AdapterInvalidError(
            f"There is no {WEIGHTS_FILE} next to {CONFIG_FILE}.", hint="Copy it there."
        )
    return AdapterInvalidError(
        f"The adapter's weights are pickled ({', '.join(pickles[:3])}); opening them can run code.",
        hint="If you trust them, load them with PEFT on a machine that may run their code, and call "
        "save_pretrained(..., safe_serialization=True); or ask the author for safetensors.",
    )
