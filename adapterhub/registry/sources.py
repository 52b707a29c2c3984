"""Where adapters come from: a folder or a Hugging Face repository; and what of it is copied.

Only files that can do nothing are copied. Opening pickled weights can run code, so they are never opened.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapterhub.errors import AdapterInvalidError, RegistryError
from adapterhub.peft_format.checks import MAX_WEIGHTS_BYTES
from adapterhub.peft_format.config import CONFIG_FILE, WEIGHTS_FILE
from adapterhub.registry.cards import CARD_FILE, Source

SAFE_PATTERNS = (WEIGHTS_FILE, "*.json", "*.txt", "*.jinja", "*.md", "LICENSE", "NOTICE")
"""The files of an adapter that are kept: weights, config, tokenizer, chat template, documents."""

_PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"})
# The largest is a tokenizer.json; those of vocabularies of 260,000 have 33 MB.
_MAX_FILE_BYTES = 64 * 2**20
_MAX_FILES = 64
_HUB = re.compile(
    r"(?:hf://)?(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(?P<revision>[\w./-]{1,100}))?"
)

Downloader = Callable[[str, str | None], Path]
"""(repository, revision) -> folder of the snapshot."""


@dataclass(frozen=True)
class Origin:
    """An adapter's files, as they came.

    Attributes:
        folder: Holds them.
        boundary: Symbolic links may not lead out of this folder. It is the folder itself, or the part of the
            hub's cache that belongs to the repository, since a snapshot there consists of links.
        source: What the card says of it.
    """

    folder: Path
    boundary: Path
    source: Source | None = None


def find_origin(path: str | Path, *, download: Downloader | None = None) -> Origin:
    """Finds the files that a path or a hub id means.

    Args:
        path: A folder, `organisation/name`, `organisation/name@revision` or
            `hf://organisation/name@revision`. A folder wins over a repository of the same spelling.
        download: Takes the place of `huggingface_hub`.

    Raises:
        RegistryError: There is neither such a folder nor such a repository, or the hub cannot be reached.
        AdapterInvalidError: The folder holds no adapter.
    """
    folder = Path(path).expanduser()
    hub = _HUB.fullmatch(path) if isinstance(path, str) else None
    if folder.is_dir():
        return Origin(_adapter_folder(folder), folder)
    if hub is None:
        raise RegistryError(
            f"There is no folder {str(path)!r}.",
            hint="Give the folder that PEFT's save_pretrained wrote, or a hub id.",
        )
    snapshot = _download(hub["repo"], hub["revision"], download or _snapshot)
    source = Source(uri=f"hf://{hub['repo']}", revision=snapshot.name)
    return Origin(_adapter_folder(snapshot), snapshot.parent.parent, source)


def _adapter_folder(folder: Path) -> Path:
    if (folder / CONFIG_FILE).exists():
        return folder
    inside = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG_FILE}"))
    raise AdapterInvalidError(
        f"The folder {folder.name!r} holds no {CONFIG_FILE}, so it is no PEFT adapter.",
        hint=f"Did you mean its folder {inside[-1]!r}?" if inside else "PEFT's save_pretrained writes one.",
    )


def _download(repo: str, revision: str | None, download: Downloader) -> Path:
    try:
        return download(repo, revision)
    except (OSError, ValueError) as error:  # every error of huggingface_hub is one of these
        raise RegistryError(
            f"{repo!r} is neither a folder here nor could it be had from the hub ({type(error).__name__}).",
            hint="Check the spelling and the network; for a private repository log in with `hf auth login`.",
        ) from error


def _snapshot(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repo, revision=revision, allow_patterns=list(SAFE_PATTERNS)))


def copy_adapter(origin: Origin, target: Path) -> tuple[str, ...]:
    """Copies what is safe of an adapter.

    Args:
        origin: The files.
        target: An empty folder.

    Returns:
        Warnings about what was left behind.

    Raises:
        AdapterInvalidError: There are no weights in safetensors, a link leads out of the folder, or there is
            too much.
    """
    entries = sorted(path for path in origin.folder.iterdir() if not path.name.startswith("."))
    pickles = [path.name for path in entries if path.suffix in _PICKLES]
    _refuse_outward_links(entries, origin.boundary)
    if not (origin.folder / WEIGHTS_FILE).is_file():
        raise _no_weights(pickles)
    wanted = [path for path in entries if path.is_file() and _is_safe(path)]
    if len(wanted) > _MAX_FILES:
        raise AdapterInvalidError(
            f"The folder holds {len(wanted)} files; an adapter has at most {_MAX_FILES}."
        )
    for path in wanted:
        _check_size(path)
        shutil.copyfile(path, target / path.name)
    return tuple(f"{name} was left behind: pickle files can run code" for name in pickles)


def _is_safe(path: Path) -> bool:
    return path.name != CARD_FILE and any(path.match(pattern) for pattern in SAFE_PATTERNS)


def _check_size(path: Path) -> None:
    size, limit = path.stat().st_size, MAX_WEIGHTS_BYTES if path.name == WEIGHTS_FILE else _MAX_FILE_BYTES
    if size > limit:
        raise AdapterInvalidError(f"{path.name} has {size:,} bytes; at most {limit:,} are accepted.")


def _refuse_outward_links(entries: list[Path], boundary: Path) -> None:
    inside = boundary.resolve()
    for path in entries:
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise AdapterInvalidError(
                f"{path.name} is a symbolic link that leads out of the adapter's folder.",
                hint="Copy the file itself there (cp -L). Of a hub repository give the id, not the cache.",
            )


def _no_weights(pickles: list[str]) -> AdapterInvalidError:
    if not pickles:
        return AdapterInvalidError(f"There is no {WEIGHTS_FILE} beside {CONFIG_FILE}.", hint="Copy it there.")
    return AdapterInvalidError(
        f"The adapter's weights are pickled ({', '.join(pickles[:3])}); opening them can run code.",
        hint="If you trust them, load them with PEFT on a machine that may run their code, and call "
        "save_pretrained(..., safe_serialization=True); or ask the author for safetensors.",
    )
