"""`adapterhub blend` and `adapterhub merge`."""

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
    from adapterhub.export import MergeComparison
    from adapterhub.registry import CardFields


@click.command()
@click.argument("name")
@click.argument("parts", nargs=-1, required=True, metavar="PART:WEIGHT...", shell_complete=complete_adapter)
@click.option(
    "--method",
    type=click.Choice(["cat", "svd", "linear", "ties", "dare_ties"]),
    default="cat",
    show_default=True,
    help="cat: the exact sum, ranks add up. svd, linear: cut to a rank. ties, dare_ties: sparse, agreed signs.",
)
@click.option("--rank", type=click.IntRange(1), help="The result's rank.  [default: the parts' highest]")
@click.option(
    "--density", type=click.FloatRange(0, 1, min_open=True), help="ties, dare_ties: the share to keep."
)
@click.option("--seed", type=click.IntRange(0), help="dare_ties: seed of the random entries to drop.")
@click.option("--description", help="What the adapter is for, in a sentence.")
@registry_option
@json_option
def blend(
    name: str,
    parts: tuple[str, ...],
    description: str | None,
    registry: Path | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Blend adapters, each with a weight, into a new version of NAME. Loads no model.

    \b
    Examples:
      adapterhub blend helper json:0.7 support:0.3
      adapterhub blend helper json:0.7 support:0.3 --method svd --rank 16
      adapterhub blend helper json@2:1 support:-0.5 --method ties --density 0.3
    """
    from adapterhub.lora.blending.methods import BlendSettings
    from adapterhub.lora.blending.registering import blend_adapters

    fields: CardFields = {"description": description} if description else {}
    card = blend_adapters(open_registry(registry), name, "+".join(parts), BlendSettings(**settings), **fields)
    output.registered(card, as_json)


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
@click.option("--revision", help="A branch, tag or commit of the base on the hub.  [default: the card's]")
@click.option(
    "--force", is_flag=True, help="Merge into another base than the card records, if the shapes fit."
)
@registry_option
@base_options
@json_option
def merge(
    name: str, out: Path, check: int, force: bool, registry: Path | None, as_json: bool, **settings: Any
) -> None:
    """Merge an adapter into its base's 16-bit weights and write the model to the folder OUT.

    The result loads with transformers alone. No live model is touched.

    \b
    Examples:
      adapterhub merge json ./json-merged
      adapterhub merge json ./json-merged --check 0
    """
    from adapterhub.base.locating import locate_base
    from adapterhub.config import HubConfig
    from adapterhub.errors import ConfigError
    from adapterhub.export import compare_merged, merge_adapter

    adapters = open_registry(registry)
    card = adapters.resolve(name)
    config = HubConfig.load(registry=registry, **settings)
    base = config.base or card.base.name
    if base is None:
        raise ConfigError(f"The card of {card.ref!r} names no base.", hint="Give it with --base.")
    revision = config.revision or card.base.revision_of(base)
    folder = locate_base(base, revision=revision)
    with progress(f"Merging {card.ref}") as show:
        report = merge_adapter(
            folder,
            adapters.folder(card),
            out,
            force=force,
            progress=lambda done, total: show(done, total, "bytes"),
        )
    if not as_json:
        output.emit(str(out))  # also if the comparison fails
    prompts = card.routing.examples[:check]
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


def _compared(comparison: MergeComparison, adapter: str) -> str:
    return (
        f"Compared with {adapter} on the unquantised base, {comparison.requests} example requests and "
        f"{comparison.tokens:,} tokens: {comparison.agreement:.0%} of the answers and "
        f"{comparison.top1_agreement:.1%} of the most probable tokens are the same; KL divergence "
        f"{comparison.kl_divergence:.1e} nats; perplexity {comparison.perplexity_merged:.4f}, the adapter's "
        f"{comparison.perplexity_adapter:.4f}."
    )
