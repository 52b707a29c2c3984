"""`adapterhub blend`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli import output
from adapterhub.cli.options import complete_adapter, json_option, open_registry, registry_option

if TYPE_CHECKING:
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
    registry: str | Path | None,
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
