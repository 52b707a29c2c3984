"""`adapterhub merge`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli import output
from adapterhub.cli.options import (
    base_options,
    complete_adapter,
    json_option,
    open_registry,
    registry_option,
)
from adapterhub.cli.progress import progress

if TYPE_CHECKING:
    from adapterhub.export import MergeComparison, MergeReport, RoundTrip


@click.command()
@click.argument("name", shell_complete=complete_adapter)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--check",
    type=click.IntRange(0),
    default=8,
    show_default=True,
    help="Compare the merged model with the adapter on the unquantised base, on this many of the card's examples; "
    "0 loads no model.",
)
@click.option(
    "--dtype",
    type=click.Choice(["bfloat16", "float16", "float32"]),
    help="The dtype of the written weights.  [default: the base's]",
)
@click.option(
    "--max-shard-size", metavar="SIZE", help="The largest file, such as 5GB.  [default: the base's own files]"
)
@click.option(
    "--exact",
    is_flag=True,
    help="Merge into the weights that the adapter was trained on, where training stored the base in 4 bits: quantised "
    "and dequantised.",
)
@click.option(
    "--quant-type",
    type=click.Choice(["nf4", "fp4"]),
    help="With --exact: bnb_4bit_quant_type in training.  [default: the card's]",
)
@click.option(
    "--double-quant/--no-double-quant",
    default=None,
    help="With --exact: bnb_4bit_use_double_quant in training.  [default: the card's, or on]",
)
@click.option("--revision", help="A branch, tag or commit of the base on the hub.  [default: the card's]")
@click.option(
    "--force", is_flag=True, help="Merge into another base than the card records, if the shapes fit."
)
@registry_option
@base_options
@json_option
def merge(
    name: str,
    out: Path,
    check: int,
    dtype: Any,
    max_shard_size: str | None,
    force: bool,
    registry: Path | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Merge an adapter, or a blend, into its base's 16-bit weights and write the model to the folder OUT.

    The result loads with transformers alone. No live model is touched.

    \b
    Examples:
      adapterhub merge json ./json-merged
      adapterhub merge json:0.6+code:0.4 ./both --max-shard-size 5GB
      adapterhub merge json ./json-merged --exact --check 0
    """
    from adapterhub.base.locating import locate_base
    from adapterhub.config import HubConfig
    from adapterhub.errors import ConfigError
    from adapterhub.export import adapter_folders, compare_merged, merge_adapter
    from adapterhub.lora.blending.resolving import resolve_adapter

    exact = _exact(settings.pop("exact"), settings.pop("quant_type"), settings.pop("double_quant"))
    adapters = open_registry(registry)
    resolved = resolve_adapter(name, adapters.resolve)
    card = resolved.main_card
    config = HubConfig.load(registry=registry, **settings)
    base = config.base or card.base.name
    if base is None:
        raise ConfigError(f"The card of {card.ref!r} names no base.", hint="Give it with --base.")
    revision = config.revision or card.base.revision_of(base)
    folder = locate_base(base, revision=revision)
    with progress(f"Merging {resolved.ref}") as show:
        report = merge_adapter(
            folder,
            adapter_folders(adapters, name),
            out,
            dtype=dtype,
            exact=exact,
            max_shard_size=max_shard_size,
            force=force,
            progress=lambda done, total: show(done, total, "bytes"),
        )
    if not as_json:
        output.emit(str(out))  # also if the comparison fails
        _notes(report)
    is_single = len(report.parts) == 1 and report.parts[0].weight == 1
    prompts = card.routing.examples[:check] if is_single and not exact else ()
    comparison = None
    if prompts:
        output.note(f"Comparing with {card.ref} on the unquantised base ...")
        comparison = compare_merged(
            adapters,
            card.ref,
            folder,
            out,
            prompts,
            device=config.device,
            trust_remote_code=config.trust_remote_code,
        )
    if as_json:
        compared = asdict(comparison) if comparison else None
        output.emit_json({**asdict(report), "comparison": compared})
    elif comparison:
        output.note(_compared(comparison, card.ref))


def _exact(exact: bool, quant_type: Any, double_quant: bool | None) -> bool | RoundTrip:
    """The weights to merge into, from the options: the base's own, those of the card, or those that the user names."""
    from adapterhub.export import RoundTrip

    if not exact and (quant_type is not None or double_quant is not None):
        raise click.UsageError("--quant-type and --double-quant belong to --exact.")
    if quant_type is None and double_quant is not None:
        raise click.UsageError("--double-quant needs --quant-type.")
    if quant_type is None:
        return exact
    return RoundTrip(quant_type, double_quant is not False)


def _notes(report: MergeReport) -> None:
    for weight in report.untied:
        output.note(
            f"{weight} no longer shares the embedding's weights: the config has tie_word_embeddings off."
        )


def _compared(comparison: MergeComparison, adapter: str) -> str:
    return (
        f"Compared with {adapter} on the unquantised base, {comparison.requests} example requests and "
        f"{comparison.tokens:,} tokens: {comparison.agreement:.0%} of the answers and "
        f"{comparison.top1_agreement:.1%} of the most probable tokens are the same; KL divergence "
        f"{comparison.kl_divergence:.1e} nats; perplexity {comparison.perplexity_merged:.4f}, the adapter's "
        f"{comparison.perplexity_adapter:.4f}."
    )
