"""`adapterhub check`: which back ends run an adapter, why not, and what makes it fit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli import output
from adapterhub.cli.options import complete_adapter, json_option, open_registry, registry_option

if TYPE_CHECKING:
    from adapterhub.capabilities import AdapterFeatures, Capability

BACKENDS = ("in-process", "llama.cpp", "vllm", "sglang")
"""The values of `Backend`, without the time that its import takes."""


@click.command()
@click.argument("name", shell_complete=complete_adapter)
@click.option("--engine", type=click.Choice(BACKENDS), help="Ask for this one only.")
@click.option(
    "--max-lora-rank", type=click.IntRange(1), help="The highest rank that it is started for.  [default: any]"
)
@registry_option
@json_option
def check(
    name: str, engine: str | None, max_lora_rank: int | None, registry: str | Path | None, as_json: bool
) -> None:
    """Show which back ends run an adapter: NAME, NAME@3, a blend, or the path of a PEFT folder such as ./my-lora.

    Exit code 1 if one does not run it. The adapter's base counts, too: `adapterhub add --base` compares them. A blend
    counts as its exact sum, whose rank is the sum of its parts' ranks.

    \b
    Examples:
      adapterhub check json
      adapterhub check ./my-lora --engine vllm --max-lora-rank 32
      adapterhub check json:0.7+support:0.3 --engine vllm
    """
    from adapterhub.capabilities import Backend, capability

    features = _features(name, registry)
    backends = [Backend(engine)] if engine else [*Backend]
    found = [capability(features, backend, max_lora_rank=max_lora_rank) for backend in backends]
    if as_json:
        output.emit_json([_fields(one) for one in found])
    else:
        rows = [(str(one.backend), "yes" if one.runs else "no", one.reason, one.hint) for one in found]
        output.table(["back end", "runs", "why not", "what helps"], rows)
    sys.exit(0 if all(one.runs for one in found) else 1)


def _features(name: str, registry: str | Path | None) -> AdapterFeatures:
    from adapterhub.capabilities import AdapterFeatures
    from adapterhub.lora.blending.resolving import Blend, resolve_adapter

    if name.startswith((".", "~")) or "/" in name:  # no adapter's name has these
        return AdapterFeatures.of_folder(Path(name).expanduser())
    adapters = open_registry(registry)
    found = resolve_adapter(name, adapters.get)
    parts = [adapters.features(card) for card, _ in found.parts]
    return AdapterFeatures.of_blend(parts) if isinstance(found, Blend) else parts[0]


def _fields(found: Capability) -> dict[str, Any]:
    return {
        "backend": str(found.backend),
        "runs": found.runs,
        "reasons": [obstacle.reason for obstacle in found.obstacles],
        "export_options": found.conversion.options if found.conversion else None,
        "exact": found.conversion.is_exact if found.conversion else None,
        "hint": found.hint or None,
    }
