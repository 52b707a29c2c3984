"""The model card (`README.md`) beside exported GGUF files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import ModelCardData

from adapterhub.export.adapter_part import AdapterSum
from adapterhub.export.base_name import base_link
from adapterhub.export.model_card import model_card
from adapterhub.registry.model_card import read_model_card

if TYPE_CHECKING:
    from adapterhub.export.gguf_report import GgufExport, GgufFile


def gguf_card(report: GgufExport, base_folder: Path, adapters: AdapterSum | None) -> str:
    """The text of the model card.

    Args:
        report: What was written.
        base_folder: The base's folder, whose own card has its licence.
        adapters: What was merged; None for the base alone.
    """
    details = "\n\n".join(_details(report))
    if adapters:
        return model_card(report.base, base_folder, adapters, None, details, library="gguf")
    licence = read_model_card(base_folder, follow_links=True)[0].get("license")
    link = base_link(report.base, "quantized")
    metadata = ModelCardData(library_name="gguf", license=licence, **link).to_yaml()
    return f"---\n{metadata}\n---\n\n# {report.base} in GGUF\n\n{details}\n"


def _details(report: GgufExport) -> Iterator[str]:
    yield "Files of llama.cpp and Ollama; `gguf.json` has their digests and all figures."
    yield "\n".join(_table(report.files))
    checked = next((file.verification for file in report.files if file.verification), None)
    if checked:
        yield (
            f"Measured with {report.checked_with} on {checked.texts}, {checked.tokens:,} predictions, against the "
            "unquantised model in float32."
        )
    else:
        yield "The files were written without being checked."
    if report.notes:
        yield "\n".join(f"- {note}" for note in report.notes)


def _table(files: Sequence[GgufFile]) -> Iterator[str]:
    yield "| file | bytes | KL divergence, nats | perplexity | the unquantised model's | same most probable token |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for file in files:
        found = file.verification
        figures = (
            f"{found.kl_divergence:.1e} | {found.perplexity:.3f} | {found.reference_perplexity:.3f} | "
            f"{found.top1_agreement:.1%}"
            if found
            else "- | - | - | -"
        )
        yield f"| {file.file} | {file.size_bytes:,} | {figures} |"
