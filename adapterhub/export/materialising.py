"""Adapters and blends in the form that a server loads: written at their first use, and kept in a cache.

Kept by the adapter's digest, the form and, where it counts, the base. What is found is read and compared with the
digest that was noted when it was written; a folder that differs is written anew. Above a maximum, the forms that were
used longest ago are removed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path

from adapterhub._files import os_errors_as
from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.config import cache_folder
from adapterhub.errors import AdapterHubError, ExportError
from adapterhub.export.lora_form import LoraForm
from adapterhub.export.peft_folder import export_peft
from adapterhub.lora.request import BlendedLoraRequest, LoraRequest, StoredLoraRequest, stored_parts
from adapterhub.peft_format.checks import check_digest, inspect_adapter
from adapterhub.registry.local_base import local_base
from adapterhub.registry.store import AdapterRegistry

MAX_FORMS = 64
"""How many forms a cache keeps if nothing else is said."""
_VERSION = 2
"""Counts changes of what is written, so that an older form is not used."""
_WRITING_S = 600
"""How long another process may write."""
_DIGITS = 16
_FORM = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}")
_EXACT = 1e-4
"""A smaller error is float32's rounding."""

_log = logging.getLogger(__name__)


def materialise(
    registry: AdapterRegistry,
    adapter: LoraRequest,
    form: LoraForm,
    *,
    cache: str | Path | None = None,
    base_folder: str | Path | None = None,
    maximum: int = MAX_FORMS,
    in_use: Collection[Path] = (),
) -> StoredLoraRequest:
    """Writes an adapter or a blend in a form, or finds it written. Several processes may share the cache.

    Args:
        registry: Where it, or its parts, are registered.
        adapter: What a request asks for.
        form: What the server takes.
        cache: The folder of all such forms; if not given, one in the user's cache.
        base_folder: The base, for DoRA; if not given, the one on the card.
        maximum: Above it the forms that were used longest ago are removed.
        in_use: Folders, as this function returned them, that stay.

    Returns:
        The folder and its own digest, under the adapter's name; a blend, which has none in the registry, is
        `blend-<digest>@1`.

    Raises:
        AdapterInvalidError: The registry has another adapter of that name than the one that is asked for.
        AdapterHubError: As `export_peft`.
    """
    from filelock import FileLock

    cache = Path(cache or cache_folder("materialised"))
    with os_errors_as(ExportError, f"{adapter.name} could not be written for a server"):
        cache.mkdir(parents=True, exist_ok=True)
        base = _base_of(registry, adapter, base_folder) if form.dora == "svd" else None
        folder = cache / _key(adapter, form, base)
        with FileLock(cache / "lock", timeout=_WRITING_S):
            digest = _intact(folder) or _write(registry, adapter, form, folder, base_folder)
            os.utime(folder)
            _remove(cache, maximum=maximum, in_use={folder / "adapter", *in_use})
    name = adapter.name if isinstance(adapter, StoredLoraRequest) else _blend_name(folder)
    return StoredLoraRequest(name, digest, folder / "adapter")


def mark_used(form: StoredLoraRequest) -> bool:
    """Notes that a form is used now; False if it has been removed, or written anew with other weights.

    Raises:
        ExportError: It cannot be noted.
    """
    folder = form.folder.parent
    with os_errors_as(ExportError, f"{form.name} could not be marked as used"):
        try:
            os.utime(folder)
            # After it: who removes a form looks at its time, and then removes the digest first.
            return (folder / "digest").read_bytes() == form.digest.encode()
        except FileNotFoundError:
            return False


def remove_unused(cache: Path, *, seconds: float, in_use: Collection[Path] = ()) -> None:
    """Removes the forms that nobody has used for some time; nothing while a process writes one.

    Args:
        cache: As for `materialise`.
        seconds: Since when.
        in_use: As for `materialise`.

    Raises:
        ExportError: The cache cannot be read.
    """
    from filelock import FileLock, Timeout

    if not cache.is_dir():
        return
    with os_errors_as(ExportError, f"The forms in {str(cache)!r} could not be removed"):
        try:
            with FileLock(cache / "lock", timeout=0):
                _remove(cache, seconds=seconds, in_use=in_use)
        except Timeout:
            return


def materialised_blends(cache: Path) -> list[StoredLoraRequest]:
    """The blends in a cache, as `materialise` returned them."""
    found = []
    for folder in _forms(cache):
        try:
            digest = (folder / "digest").read_text(encoding="ascii")
        except (OSError, ValueError):  # it is being written, or another process has just removed it
            continue
        found.append(StoredLoraRequest(_blend_name(folder), digest, folder / "adapter"))
    return found


def _forms(cache: Path) -> list[Path]:
    """The folders of forms: what else is in the folder of a cache is left alone."""
    return [path for path in cache.iterdir() if _FORM.fullmatch(path.name) and path.is_dir()]


def _blend_name(folder: Path) -> str:
    return f"blend-{folder.name[:_DIGITS]}@1"


def _base_of(
    registry: AdapterRegistry, adapter: LoraRequest, base_folder: str | Path | None
) -> BaseFingerprint | None:
    """The base on which the form depends."""
    cards = (registry.get(part.name) for part in stored_parts(adapter))
    folder = base_folder or next((base for card in cards if (base := local_base(card.base))), None)
    return BaseFingerprint.of(folder) if folder else None


def _key(adapter: LoraRequest, form: LoraForm, base: BaseFingerprint | None) -> str:
    """The name of a form's folder: it begins with the adapter's digest."""
    content = [_VERSION, adapter.digest, asdict(form), base.digest if base else None]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return f"{adapter.digest.removeprefix('sha256:')[:_DIGITS]}-{digest[:_DIGITS]}"


def _intact(folder: Path) -> str | None:
    """The digest of what was written before; None if there is nothing, or it has changed since."""
    try:
        noted = (folder / "digest").read_text(encoding="ascii")
        return noted if inspect_adapter(folder / "adapter").digest == noted else None
    except (OSError, ValueError, AdapterHubError):
        return None


def _write(
    registry: AdapterRegistry,
    adapter: LoraRequest,
    form: LoraForm,
    folder: Path,
    base_folder: str | Path | None,
) -> str:
    """Writes a form; its digest."""
    _check_registered(registry, adapter)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    report = export_peft(registry, _parts(adapter), folder / "adapter", form, base_folder=base_folder)
    if report.error > _EXACT:
        _log.warning(
            "%s was cut to rank %d: what it changes differs by %.1f %%.",
            adapter.name,
            report.rank,
            100 * report.error,
        )
    (folder / "digest").write_text(report.digest, encoding="ascii")
    return report.digest


def _check_registered(registry: AdapterRegistry, adapter: LoraRequest) -> None:
    """Refuses another registry's adapter: it would be kept under a digest that is not its own."""
    for part in stored_parts(adapter):
        check_digest(part.name, registry.get(part.name).digest, part.digest)


def _parts(adapter: LoraRequest) -> dict[str, float]:
    """References with weights; of an adapter that a blend has twice, their sum."""
    weights = defaultdict[str, float](float)
    for part, weight in adapter.parts if isinstance(adapter, BlendedLoraRequest) else [(adapter, 1.0)]:
        weights[part.name] += weight
    return dict(weights)


def _remove(
    cache: Path, *, maximum: int | None = None, seconds: float = 0, in_use: Collection[Path] = ()
) -> None:
    """Removes forms that nobody has used for some time, all of them or those above a maximum."""
    used = {path: path.stat().st_mtime for path in _forms(cache)}
    latest = time.time() - seconds
    idle = [path for path in used if used[path] <= latest and path / "adapter" not in in_use]
    excess = len(used) if maximum is None else len(used) - maximum
    for path in sorted(idle, key=used.__getitem__)[: max(excess, 0)]:
        if path.stat().st_mtime == used[path]:  # else another process has begun to use it meanwhile
            (path / "digest").unlink(missing_ok=True)  # first, so that a half-removed one is none
            shutil.rmtree(path, ignore_errors=True)
