"""Exporting an adapter or a blend as a folder that PEFT, and every server that reads PEFT's format, loads.

    reference -> cards -> the stored files as they are, or the deltas of a blend -> a PEFT folder with a model card

One adapter's weights are copied byte for byte. Its tokenizer files and licences go with it; what is only this
registry's, such as the routing examples, does not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapterhub._files import new_folder, os_errors_as
from adapterhub.errors import ExportError
from adapterhub.export.adapter_card import adapter_card, public_base
from adapterhub.export.free_folder import free_folder
from adapterhub.lora.blending.methods import BlendSettings, blend_deltas
from adapterhub.lora.blending.resolving import ResolvedAdapter, SingleAdapter, resolve_adapter
from adapterhub.lora.digest_check import DigestCheck
from adapterhub.lora.loading import read_deltas_without_base
from adapterhub.lora.request import StoredLoraRequest
from adapterhub.lora.saving import save_adapter
from adapterhub.peft_format.checks import inspect_adapter
from adapterhub.peft_format.config import CONFIG_FILE
from adapterhub.registry.sources import AdapterFiles, copy_adapter
from adapterhub.registry.store import AdapterRegistry


@dataclass(frozen=True)
class PeftExport:
    """What an exported PEFT folder holds.

    Attributes:
        adapter: The reference of the adapter, or of the blend, with versions.
        digest: The digest of the exported files; that of the adapter if nothing had to change.
        rank: The highest rank of its layers.
        size_bytes: The size of the weights' file.
    """

    adapter: str
    digest: str
    rank: int
    size_bytes: int


def export_peft(registry: AdapterRegistry, adapter: str | Mapping[str, float], out: str | Path) -> PeftExport:
    """Writes an adapter, or the exact sum of a blend, as a PEFT folder.

    Args:
        registry: Where it is registered.
        adapter: A reference, or a blend: `"json:0.7+support:0.3"` or reference -> weight.
        out: The new folder; it must not exist, or be empty.

    Raises:
        ExportError: `out` is not empty, or writing failed. Then `out` is not created.
        AdapterNotFoundError: There is no such adapter.
        AdapterInvalidError: An adapter's files are damaged, or not those that were registered.
        AdapterIncompatibleError: The parts of a blend do not belong together, or one uses DoRA.
        InvalidRequestError: The reference is not valid.
    """
    out = free_folder(out)
    resolved = resolve_adapter(adapter, registry.resolve)
    with os_errors_as(ExportError, f"{resolved.ref} could not be exported to {str(out)!r}"):
        _check_digests(registry, resolved)
        with new_folder(out) as folder:
            _write(folder, registry, resolved)
            info = inspect_adapter(folder)
            (folder / "README.md").write_text(adapter_card(resolved), encoding="utf-8")
    return PeftExport(
        adapter=resolved.ref,
        digest=info.digest,
        rank=max(shape.rank for shape in info.modules.values()),
        size_bytes=info.size_bytes,
    )


def _check_digests(registry: AdapterRegistry, resolved: ResolvedAdapter) -> None:
    check = DigestCheck()
    for card, _ in resolved.parts:
        check(StoredLoraRequest(card.ref, card.digest, registry.folder(card)))


def _write(folder: Path, registry: AdapterRegistry, resolved: ResolvedAdapter) -> None:
    source = registry.folder(resolved.main_card)
    copy_adapter(AdapterFiles(source, source), folder)
    config = json.loads((folder / CONFIG_FILE).read_bytes())
    config["base_model_name_or_path"] = public_base(resolved.main_card)
    if isinstance(resolved, SingleAdapter):
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        return
    parts = [(read_deltas_without_base(registry.folder(card)), weight) for card, weight in resolved.parts]
    save_adapter(folder, blend_deltas(parts, BlendSettings()), config, {})
