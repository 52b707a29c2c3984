"""The `gguf` format of `adapterhub export`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from adapterhub.cli.export_request import ExportRequest
    from adapterhub.cli.options import F
    from adapterhub.export import GgufExport

GGUF_OPTIONS = frozenset(
    {
        "quant",
        "base",
        "no_verify",
        "no_modelfile",
        "no_modelfile_tools",
        "pre_tokenizer",
        "llama_cpp_dir",
        "force",
    }
)


def gguf_options(function: F) -> F:
    """The options that the format has alone."""
    options = [
        click.option(
            "--quant",
            metavar="TYPE,...",
            help="gguf: types of the files: f32, f16, bf16, q8_0, q5_0, q4_0, and with llama-cpp-python q4_k_m, q2_k "
            "and more.  [default: f16]  gguf-adapter: f32 or f16.  [default: f32]",
        ),
        click.option("--no-verify", is_flag=True, help="gguf: write the files without checking them."),
        click.option(
            "--no-modelfile", is_flag=True, help="gguf, gguf-adapter: write no Modelfiles for Ollama."
        ),
        click.option(
            "--no-modelfile-tools",
            is_flag=True,
            help="gguf, gguf-adapter: leave tools out of the Modelfiles, where Ollama's language cannot express them.",
        ),
        click.option(
            "--pre-tokenizer",
            metavar="NAME",
            help="gguf: llama.cpp's nearest way to split text, where the tokenizer's own has no name there.",
        ),
        click.option(
            "--llama-cpp-dir",
            type=click.Path(path_type=Path, exists=True, file_okay=False),
            help="gguf: a checkout of llama.cpp whose converter writes the file, for other architectures.",
        ),
        click.option("--force", is_flag=True, help="gguf: merge into another base than the card records."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def type_names(given: str) -> tuple[str, ...]:
    """The types in a list with commas between them."""
    return tuple(name.strip() for name in given.split(",") if name.strip())


def export_as_gguf(wanted: ExportRequest) -> tuple[GgufExport, str]:
    """Exports an adapter, a blend, or the base alone where the name is `base`."""
    from adapterhub.base.locating import locate_base
    from adapterhub.config import HubConfig
    from adapterhub.export import LlamaCppCheckout, adapter_folders, export_gguf
    from adapterhub.hub import chosen_base
    from adapterhub.lora.blending.resolving import resolve_adapter

    options = dict(wanted.options)
    named = options.pop("base", None)
    alone = wanted.name in ("base", "__base__")
    folders: Mapping[Path, float] | None = None
    if alone:
        base, revision = chosen_base(HubConfig.load(base=named), wanted.registry)
    else:
        card = resolve_adapter(wanted.name, wanted.registry.resolve).main_card
        base, revision = named or card.base.name or "", card.base.revision_of(named or card.base.name or "")
        folders = adapter_folders(wanted.registry, wanted.name)
    checkout = options.pop("llama_cpp_dir", None)
    report = export_gguf(
        locate_base(base, revision=revision),
        folders,
        wanted.out,
        types=type_names(options.pop("quant", "f16")),
        verify=not options.pop("no_verify", False),
        modelfiles=not options.pop("no_modelfile", False),
        modelfile_tools=not options.pop("no_modelfile_tools", False),
        checkout=LlamaCppCheckout.of(checkout) if checkout else None,
        progress=wanted.progress,
        **options,
    )
    return report, said(report)


def said(report: GgufExport) -> str:
    """What an export has found, in lines."""
    lines = []
    for file in report.files:
        size = f"{file.file}: {file.size_bytes:,} bytes"
        lines.append(f"{size}; {file.verification}." if file.verification else f"{size}, not checked.")
    if report.checked_with:
        texts = next(file.tokens for file in report.files if file.tokens)
        lines.append(
            f"{texts.texts - texts.different} of {texts.texts} texts have the same tokens. Checked with "
            f"{report.checked_with}."
        )
    return "\n".join([*lines, *report.notes])
