"""`adapterhub finetune` and `adapterhub merge`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from adapterhub.cli import output
from adapterhub.cli.options import complete_adapter, json_option, open_registry, registry_option


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@registry_option
@json_option
def finetune(config: Path, registry: Path | None, as_json: bool) -> None:
    """Fine-tune an adapter on the 4-bit base as CONFIG (YAML) says, and register it.

    \b
    Example:
      adapterhub finetune examples/finetune.yaml
    """
    from adapterhub.training.config import FinetuneConfig

    settings = FinetuneConfig.load(config)
    adapters = open_registry(registry)
    # peft and trl take seconds to import, so a mistake in CONFIG is told first.
    from adapterhub.training.finetune import finetune as run_finetune

    card = run_finetune(settings, adapters)
    if as_json:
        output.emit_json(card.model_dump(mode="json"))
    else:
        output.emit(card.ref)


@click.command()
@click.argument("name", shell_complete=complete_adapter)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--base", help="The base's 16-bit weights: a folder or a hub id.  [default: the one the card names]"
)
@registry_option
@json_option
def merge(name: str, out: Path, base: str | None, registry: Path | None, as_json: bool) -> None:
    """Merge an adapter into its base's 16-bit weights and write the model to the folder OUT.

    The result loads with transformers alone. No live model is touched.

    \b
    Example:
      adapterhub merge json ./json-merged
    """
    from adapterhub.bases import locate_base
    from adapterhub.errors import ConfigError
    from adapterhub.export.merge import merge_adapter

    adapters = open_registry(registry)
    card = adapters.resolve(name)
    chosen = base or card.base.name
    if chosen is None:
        raise ConfigError(f"The card of {card.ref!r} names no base.", hint="Give it with --base.")
    report = merge_adapter(locate_base(chosen), adapters.folder(card), out)
    if as_json:
        output.emit_json(asdict(report))
    else:
        output.emit(str(out))
