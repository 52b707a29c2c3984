"""`adapterhub merge`."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
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
    from adapterhub.export import MergeReport, RoundTrip


@click.command()
@click.argument("name", shell_complete=complete_adapter)
@click.argument("out", type=click.Path(path_type=Path))
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
@click.option(
    "--quantize",
    type=click.Choice(["nf4", "int8"]),
    help="Quantise the merged model with bitsandbytes afterwards, and show what that loses.",
)
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Compare the merged model with the adapter on the base before it is kept; takes two to four passes of the "
    "model over about 1,300 tokens.",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Verify on held-out conversations, JSON Lines.  [default: the card's examples and shipped texts]",
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
    dtype: Any,
    max_shard_size: str | None,
    quantize: Any,
    verify: bool,
    data: Path | None,
    force: bool,
    registry: str | Path | None,
    as_json: bool,
    **settings: Any,
) -> None:
    """Merge an adapter, or a blend, into its base's 16-bit weights and write the model to the folder OUT.

    The result loads with transformers alone. No live model is touched.

    \b
    Examples:
      adapterhub merge json ./json-merged
      adapterhub merge json:0.6+code:0.4 ./both --max-shard-size 5GB
      adapterhub merge json ./json-merged --exact
      adapterhub merge json ./json-4bit --quantize nf4
    """
    from adapterhub.base.locating import locate_base
    from adapterhub.config import HubConfig
    from adapterhub.errors import ConfigError
    from adapterhub.export import MergeVerifier, adapter_folders, merge_adapter, merge_quantized
    from adapterhub.lora.blending.resolving import resolve_adapter

    if data and not verify:
        raise click.UsageError("--data belongs to --verify.")
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
        verifier = MergeVerifier(data, lambda done, total: show(done, total, "tokens verified"))
        into = partial(merge_quantized, quantization=quantize) if quantize else merge_adapter
        report = into(
            folder,
            adapter_folders(adapters, name),
            out,
            dtype=dtype,
            exact=exact,
            max_shard_size=max_shard_size,
            force=force,
            verify=verify and verifier,
            progress=lambda done, total: show(done, total, "bytes"),
        )
    if as_json:
        output.emit_json(asdict(report))
        return
    output.emit(str(out))
    _notes(report)


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
    if report.quantization_loss:
        output.note(
            f"Quantised to {report.quantization}. Compared with the merged model: {report.quantization_loss}."
        )
    if report.verification is None:
        output.note("Not verified.")
        return
    output.note(str(report.verification))
    if report.verification.without_exact and not report.exact:
        output.note("--exact merges into the weights of training instead.")
