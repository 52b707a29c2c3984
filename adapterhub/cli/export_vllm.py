"""`adapterhub export-vllm`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from adapterhub.cli import output
from adapterhub.cli.options import complete_adapter, json_option, open_registry, registry_option
from adapterhub.cli.progress import progress


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=complete_adapter)
@click.option(
    "--base", help="The base that vLLM loads: a folder or a hub id.  [default: the one the cards name]"
)
@click.option(
    "--max-loras", type=click.IntRange(1), default=8, show_default=True, help="Adapters in one batch."
)
@click.option("--rank", type=click.IntRange(1), help="Cut higher ranks by SVD, and show the error.")
@click.option("--dora", type=click.Choice(["svd"]), help="Approximate DoRA by LoRA, and show the error.")
@click.option(
    "--max-error", type=click.FloatRange(0), help="Fail if an adapter would differ by more.  [default: 0.5]"
)
@registry_option
@json_option
def export_vllm(
    out: Path,
    names: tuple[str, ...],
    base: str | None,
    max_loras: int,
    registry: str | Path | None,
    as_json: bool,
    **form: Any,
) -> None:
    """Write a launch file of vLLM for the registry, and the adapters that it serves, into the new folder OUT.

    Without NAME all adapters of the base are served. Then: cd OUT && vllm serve --config vllm.yaml

    \b
    Examples:
      adapterhub export-vllm ./vllm
      adapterhub export-vllm ./vllm json json:0.6+code:0.4 --base Qwen/Qwen3-0.6B
    """
    from adapterhub.export import LoraForm, export_vllm

    given = LoraForm(**{name: value for name, value in form.items() if value is not None})
    adapters = open_registry(registry)
    with progress("Exporting") as show:
        report = export_vllm(
            adapters,
            out,
            names,
            given,
            base=base,
            max_loras=max_loras,
            progress=lambda done, total: show(done, total, "adapters"),
        )
    if as_json:
        output.emit_json(asdict(report))
        return
    output.emit(str(out))
    for adapter in report.adapters:
        error = f"; differs by {adapter.error:.2%}" if adapter.error else ""
        output.note(f"{adapter.name}: {adapter.adapter}, rank {adapter.rank}{error}")
    for warning in report.warnings:
        output.warn(f"{warning}.")
