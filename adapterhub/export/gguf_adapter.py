"""Exporting an adapter or a blend alone as a GGUF file: one base GGUF then serves any number of them.

reference -> cards -> changes -> adapter GGUF -> read back and compared -> folder with a model card
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapterhub._files import new_folder, os_errors_as, sha256_file
from adapterhub.base.loading import load_tokenizer
from adapterhub.errors import AdapterIncompatibleError, ConfigError, ExportError
from adapterhub.export.adapter_card import adapter_card
from adapterhub.export.free_folder import free_folder
from adapterhub.export.licence_files import copy_licences
from adapterhub.export.lora_form import change_error
from adapterhub.export.ollama import GgufFiles, write_modelfiles
from adapterhub.gguf.adapter import AdapterType, read_adapter, write_adapter
from adapterhub.gguf.architectures import Architecture
from adapterhub.gguf.tokenizer import gguf_tokenizer
from adapterhub.lora.blending.methods import BlendSettings, blend_deltas
from adapterhub.lora.blending.parts import check_files, check_same_base, read_parts
from adapterhub.lora.blending.resolving import ResolvedAdapter, resolve_adapter
from adapterhub.lora.delta import LoraDelta
from adapterhub.registry.local_base import local_base
from adapterhub.registry.model_card import MODEL_CARD_FILE
from adapterhub.registry.store import AdapterRegistry

_BASE_FILE = "model-f16.gguf"
"""The base's file as `export_gguf` names it."""
_REPORT = "Please report it."
_BOUNDS: Mapping[AdapterType, float] = {"f32": 1e-6, "f16": 2e-3}


@dataclass(frozen=True)
class GgufAdapterExport:
    """What an exported folder with an adapter GGUF holds.

    Attributes:
        adapter: The reference of the adapter, or of the blend, with versions.
        architecture: llama.cpp's name of the base's architecture.
        file: The name of the file.
        type: How its matrices are stored: `"f32"` or `"f16"`.
        rank: The highest rank of its layers.
        size_bytes: Its size.
        sha256: Of its bytes.
        error: How far its change of the base is from the adapter's, as in `ChangeError`.
    """

    adapter: str
    architecture: str
    file: str
    type: AdapterType
    rank: int
    size_bytes: int
    sha256: str
    error: float


def export_gguf_adapter(
    registry: AdapterRegistry,
    adapter: str | Mapping[str, float],
    out: str | Path,
    *,
    dtype: AdapterType = "f32",
    base_folder: str | Path | None = None,
    modelfile: bool = True,
    modelfile_tools: bool = True,
) -> GgufAdapterExport:
    """Writes an adapter, or the exact sum of a blend, as `adapter-f32.gguf`, for llama.cpp's `--lora` on its base.

    The file is read back, and has to change the base as the adapter does. `Modelfile.f32` is for Ollama, with the
    base as `model-f16.gguf` beside it.

    Args:
        registry: Where it is registered.
        adapter: A reference, or a blend: `"json:0.7+support:0.3"` or reference -> weight.
        out: The new folder; it must not exist, or be empty.
        dtype: How its matrices are stored: `"f32"`, or `"f16"` for half the size.
        base_folder: The base; only its settings are read. If not given, the one on the card.
        modelfile: Write the Modelfile.
        modelfile_tools: Whether it has tools, where the chat template has them.

    Raises:
        ExportError: `out` is not empty, llama.cpp's names for the base's layers are not known, the Modelfile cannot
            express the chat template, or writing failed. Then `out` is not created.
        AdapterNotFoundError: There is no such adapter.
        AdapterInvalidError: An adapter's files are damaged, or not those that were registered.
        AdapterIncompatibleError: The parts of a blend do not belong together, the adapter does not fit the base, it
            uses DoRA, or it adapts a layer that llama.cpp does not have.
        InvalidRequestError: The reference is not valid.
        ConfigError: The base is not on this machine, or cannot be read.
    """
    out = free_folder(out)
    resolved = resolve_adapter(adapter, registry.resolve)
    check_same_base(resolved)
    folder = Path(base_folder) if base_folder else local_base(resolved.main_card.base)
    if folder is None:
        raise ConfigError(
            f"The base of {resolved.ref} is not on this machine.", hint="Give it with --base (base_folder)."
        )
    architecture, file = Architecture.of_folder(folder), f"adapter-{dtype}.gguf"
    deltas = _changes(registry, resolved, architecture)
    with (
        os_errors_as(ExportError, f"{resolved.ref} could not be exported to {str(out)!r}"),
        new_folder(out) as temporary,
    ):
        with (temporary / file).open("xb") as stream:
            write_adapter(stream, architecture, deltas, name=resolved.ref, dtype=dtype)
        report = _report(temporary / file, resolved.ref, architecture, deltas, dtype)
        if modelfile:
            _write_modelfile(temporary, file, resolved, folder, architecture, modelfile_tools)
        card = adapter_card(resolved, library="llama.cpp")
        (temporary / MODEL_CARD_FILE).write_text(card, encoding="utf-8")
        copy_licences(registry.folder(resolved.main_card), temporary)
    return report


def _write_modelfile(
    out: Path, file: str, resolved: ResolvedAdapter, base: Path, architecture: Architecture, tools: bool
) -> None:
    profile, tokenizer = resolved.main_card.prompt, load_tokenizer(base)
    # Any way to split text will do here: what counts is what llama.cpp puts before a text.
    written = gguf_tokenizer(tokenizer, architecture.config.vocab_size, pre="gpt-2")
    if written.leading_space:  # which only the file's own template writes
        profile = profile.model_copy(update={"chat_template": written.chat_template})
    artefacts = {file[len("adapter-") : -len(".gguf")]: GgufFiles(_BASE_FILE, file)}
    write_modelfiles(out, artefacts, base, profile=profile, add_bos=written.add_bos, tools=tools)


def _changes(
    registry: AdapterRegistry, resolved: ResolvedAdapter, architecture: Architecture
) -> dict[str, LoraDelta]:
    dora = next((card for card, _ in resolved.parts if card.peft.use_dora), None)
    if dora:
        raise AdapterIncompatibleError(
            f"{dora.ref} uses DoRA, which llama.cpp does not have.",
            hint="--format gguf writes it merged into its base, which is exact; --format peft --dora svd "
            "approximates it by LoRA, which can be added and exported.",
        )
    check_files(registry, resolved)
    return blend_deltas(read_parts(registry, resolved, architecture.layers), BlendSettings())


def _report(
    file: Path, ref: str, architecture: Architecture, deltas: Mapping[str, LoraDelta], dtype: AdapterType
) -> GgufAdapterExport:
    written = read_adapter(file, architecture)
    if written.keys() != deltas.keys():
        raise ExportError(f"The file has {len(written)} layers, and {ref} {len(deltas)}.", hint=_REPORT)
    found = change_error(written, deltas, None)
    if found.error > _BOUNDS[dtype]:
        raise ExportError(
            f"The file's change of the base differs from that of {ref} by {found.error:.2%}.",
            hint="Its smallest values are lost in f16; take f32." if dtype == "f16" else _REPORT,
        )
    return GgufAdapterExport(
        adapter=ref,
        architecture=architecture.name,
        file=file.name,
        type=dtype,
        rank=max(len(delta.a) for delta in deltas.values()),
        size_bytes=file.stat().st_size,
        sha256=sha256_file(file),
        error=found.error,
    )
