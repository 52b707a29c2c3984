"""`adapterhub export`: one command, a function for each format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli import output
from adapterhub.cli.export_gguf import GGUF_OPTIONS, export_as_gguf, gguf_options
from adapterhub.cli.export_request import ExportRequest
from adapterhub.cli.options import complete_adapter, json_option, open_registry, registry_option
from adapterhub.cli.progress import progress

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from adapterhub.export import LoraForm, PeftExport


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        export: Writes it, and returns a report and what to say about it.
        options: The names of the options that only some formats have, and this one has.
    """

    export: Callable[[ExportRequest], tuple[DataclassInstance, str]]
    options: frozenset[str] = frozenset()


def _peft(wanted: ExportRequest) -> tuple[DataclassInstance, str]:
    from adapterhub.export import export_peft

    return _adapter(wanted, export_peft)


def _mlx(wanted: ExportRequest) -> tuple[DataclassInstance, str]:
    from adapterhub.export import export_mlx

    return _adapter(wanted, export_mlx)


def _adapter(wanted: ExportRequest, write: Callable[..., PeftExport]) -> tuple[DataclassInstance, str]:
    form, base = _lora_form(wanted)
    report = write(
        wanted.registry,
        wanted.name,
        wanted.out,
        form,
        base_folder=base,
        progress=lambda done, total: wanted.progress(done, total, "layers"),
    )
    return report, f"{report.adapter}: rank {report.rank}, {report.size_bytes:,} bytes{_error(report)}."


def _lora_form(wanted: ExportRequest) -> tuple[LoraForm, Path | None]:
    """The form that the options describe, and the base's folder if they name it."""
    from adapterhub.base.locating import locate_base
    from adapterhub.export import LoraForm

    options = dict(wanted.options)
    base = options.pop("base", None)
    return LoraForm(**options), locate_base(base) if base else None


def _error(report: PeftExport) -> str:
    if report.worst_layer is None:
        return ""
    return (
        f"; its change of the base differs from the adapter's by {report.error:.2%} "
        f"(at most {report.worst_error:.2%}, in {report.worst_layer})"
    )


def _gguf_adapter(wanted: ExportRequest) -> tuple[DataclassInstance, str]:
    from adapterhub.base.locating import locate_base
    from adapterhub.export import export_gguf_adapter

    base, dtype = wanted.options.get("base"), wanted.options.get("quant", "f32")
    if dtype not in ("f32", "f16"):
        raise click.UsageError("--format gguf-adapter has --quant f32 (its default) and f16.")
    report = export_gguf_adapter(
        wanted.registry,
        wanted.name,
        wanted.out,
        dtype=dtype,
        base_folder=locate_base(base) if base else None,
        modelfile="no_modelfile" not in wanted.options,
        modelfile_tools="no_modelfile_tools" not in wanted.options,
    )
    return report, f"{report.adapter}: rank {report.rank}, {report.size_bytes:,} bytes."


_LORA_OPTIONS = frozenset({"plain", "rank", "dora", "max_error", "base"})
FORMATS = {
    "peft": Format(_peft, _LORA_OPTIONS),
    "gguf": Format(export_as_gguf, GGUF_OPTIONS),
    "mlx": Format(_mlx, _LORA_OPTIONS - {"plain"}),
    "gguf-adapter": Format(_gguf_adapter, frozenset({"base", "quant", "no_modelfile", "no_modelfile_tools"})),
}


@click.command()
@click.argument("name", shell_complete=complete_adapter)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "kind",
    type=click.Choice(list(FORMATS)),
    required=True,
    help="peft: a folder that PEFT, vLLM and others load. mlx: an adapter of mlx-lm. gguf: files of llama.cpp and "
    "Ollama, checked. gguf-adapter: an adapter of llama.cpp, to be used with a GGUF file of its base.",
)
@click.option(
    "--plain",
    is_flag=True,
    help="peft: for readers of r and lora_alpha only; folds rsLoRA, rank_pattern and alpha_pattern.",
)
@click.option(
    "--rank", type=click.IntRange(1), help="peft, mlx: cut higher ranks by SVD, and show the error."
)
@click.option(
    "--dora",
    type=click.Choice(["keep", "svd"]),
    help="peft, mlx: svd approximates DoRA by LoRA, and shows the error.  [default: keep]",
)
@click.option(
    "--max-error",
    type=click.FloatRange(0),
    help="peft, mlx: fail if the adapter's change would differ by more than this share.  [default: 0.5]",
)
@click.option("--base", help="The base, where the export needs it.  [default: the one the card names]")
@gguf_options
@registry_option
@json_option
def export(
    name: str, out: Path, kind: str, registry: str | Path | None, as_json: bool, **options: Any
) -> None:
    """Export an adapter, or a blend, to the new folder OUT for other programs.

    \b
    Examples:
      adapterhub export json ./json-lora --format peft
      adapterhub export json:0.6+code:0.4 ./both --format peft --plain --rank 16
      adapterhub export sql ./sql-gguf --format gguf --quant f16,q8_0,q4_k_m
    """
    given = {option: value for option, value in options.items() if value is not None and value is not False}
    for option in sorted(given.keys() - FORMATS[kind].options):
        raise click.UsageError(f"--{option.replace('_', '-')} is not an option of --format {kind}.")
    with progress(f"Exporting {name}") as show:
        report, said = FORMATS[kind].export(ExportRequest(open_registry(registry), name, out, given, show))
    if as_json:
        output.emit_json(asdict(report))
    else:
        output.emit(str(out))
        output.note(said)
