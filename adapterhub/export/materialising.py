"""Adapters and blends in the form that a server loads: written at their first use, and kept in the cache.

Kept by the adapter's digest and the form. What is found is read and compared with the digest that was noted when it was
written; a folder that differs is written anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

from adapterhub._files import os_errors_as
from adapterhub.config import cache_folder
from adapterhub.errors import AdapterHubError, ExportError
from adapterhub.export.lora_form import LoraForm
from adapterhub.export.peft_folder import export_peft
from adapterhub.lora.request import BlendedLoraRequest, LoraRequest, StoredLoraRequest, stored_parts
from adapterhub.peft_format.checks import check_digest, inspect_adapter
from adapterhub.registry.store import AdapterRegistry

_VERSION = 1
"""Counts changes of what is written, so that an older form is not used."""


def materialise(
    registry: AdapterRegistry,
    adapter: LoraRequest,
    form: LoraForm,
    *,
    cache: str | Path | None = None,
    base_folder: str | Path | None = None,
) -> StoredLoraRequest:
    """Writes an adapter or a blend in a form, or finds it written. Several processes may share the cache.

    Args:
        registry: Where it, or its parts, are registered.
        adapter: What a request asks for.
        form: What the server takes.
        cache: The folder of all such forms; if not given, one in the user's cache.
        base_folder: The base, for DoRA; if not given, the one on the card.

    Returns:
        The folder and its own digest, under the adapter's name; a blend, which has none in the registry, is
        `blend-<digest>@1`.

    Raises:
        AdapterInvalidError: The registry has another adapter of that name than the one that is asked for.
        AdapterHubError: As `export_peft`.
    """
    from filelock import FileLock

    folder = Path(cache or cache_folder("materialised")) / _key(adapter, form)
    with os_errors_as(ExportError, f"{adapter.name} could not be written for a server"):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "lock"):
            if (digest := _intact(folder)) is None:
                _check_registered(registry, adapter)
                shutil.rmtree(folder / "adapter", ignore_errors=True)
                report = export_peft(
                    registry, _parts(adapter), folder / "adapter", form, base_folder=base_folder
                )
                digest = report.digest
                (folder / "digest").write_text(digest, encoding="ascii")
    name = f"blend-{adapter.digest.removeprefix('sha256:')[:16]}@1"
    return StoredLoraRequest(
        adapter.name if isinstance(adapter, StoredLoraRequest) else name, digest, folder / "adapter"
    )


def _key(adapter: LoraRequest, form: LoraForm) -> str:
    content = json.dumps([_VERSION, adapter.digest, asdict(form)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


def _intact(folder: Path) -> str | None:
    """The digest of what was written before; None if there is nothing, or it has changed since."""
    try:
        noted = (folder / "digest").read_text(encoding="ascii")
        return noted if inspect_adapter(folder / "adapter").digest == noted else None
    except (OSError, ValueError, AdapterHubError):
        return None


def _check_registered(registry: AdapterRegistry, adapter: LoraRequest) -> None:
    """Refuses another registry's adapter: it would be kept under a digest that is not its own."""
    for part in stored_parts(adapter):
        check_digest(part.name, registry.get(part.name).digest, part.digest)


def _parts(adapter: LoraRequest) -> dict[str, float]:
    parts = adapter.parts if isinstance(adapter, BlendedLoraRequest) else [(adapter, 1.0)]
    return {part.name: weight for part, weight in parts}
