"""Commands that read and change the registry: list, show, add, rm, verify. None of them loads a model."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adapterhub.cli import output
from adapterhub.cli.alias import describe_alias
from adapterhub.cli.options import complete_adapter, json_option, open_registry, registry_option
from adapterhub.cli.routes import warn_of_routes
from adapterhub.errors import AdapterInvalidError, ConfigError

if TYPE_CHECKING:
    from adapterhub.registry import AdapterCard, AdapterRegistry, Evaluation, PeftInfo


@click.command("list")
@registry_option
@json_option
def list_adapters(registry: str | Path | None, as_json: bool) -> None:
    """List the adapters: the version that each bare name means.

    \b
    Examples:
      adapterhub list
      adapterhub list --registry adapters --json
    """
    adapters = open_registry(registry)
    cards = adapters.list()
    if as_json:
        output.emit_json([card.model_dump(mode="json") for card in cards])
        return
    if not cards:
        output.note(f"No adapters in {adapters.location}. `adapterhub add NAME PATH` registers one.")
        return
    aliases = [_aliases(adapters, card) for card in cards]
    shown = ["aliases"] if any(aliases) else []
    rows = [
        (card.name, str(card.version), *([of_one] if shown else []), *_summary(card))
        for card, of_one in zip(cards, aliases, strict=True)
    ]
    output.table(["name", "version", *shown, "rank", "size", "base", "description"], rows, cut=True)


@click.command()
@click.argument("name", shell_complete=complete_adapter)
@registry_option
@json_option
def show(name: str, registry: str | Path | None, as_json: bool) -> None:
    """Show everything known about an adapter: NAME, NAME@3 or NAME@alias.

    \b
    Examples:
      adapterhub show json
      adapterhub show json@2 --json
    """
    adapters = open_registry(registry)
    card = adapters.get(name)
    style, folder, aliases = _prompt_style(card), adapters.expected_folder(card), adapters.aliases(card.name)
    runs_on = _back_ends(adapters, card)
    if as_json:
        traffic = {name: alias.model_dump(mode="json") for name, alias in aliases.items() if alias.is_shared}
        more = {"traffic": traffic, "prompt_in_use": style, "folder": str(folder), "runs_on": runs_on}
        output.emit_json({**card.model_dump(mode="json"), **more})
        return
    traffic_lines = [
        f"{card.name}@{name}: {describe_alias(card.name, alias)}"
        for name, alias in aliases.items()
        if alias.is_shared
    ]
    shown = [
        ("traffic", "\n".join(traffic_lines)),
        ("prompt in use", style),
        ("runs on", ", ".join(runs_on)),
        ("folder", str(folder)),
    ]
    output.fields([*_fields(card), *shown])
    for warning in card.warnings:
        output.warn(warning)


@click.command()
@click.argument("name")
@click.argument("path")
@click.option(
    "--base", help="Check the adapter against this base: adapterhub-demo, a folder, a GGUF file or a hub id."
)
@click.option(
    "--quantization", type=click.Choice(["nf4", "fp4", "int8"]), help="How that base was stored in training."
)
@click.option("--description", help="What the adapter is for, in a sentence.")
@click.option("--tag", "tags", multiple=True, help="A word to find it by; may be given several times.")
@click.option("--example", "examples", multiple=True, help="A request for it, for the router; several times.")
@click.option(
    "--force", is_flag=True, help="Accept another base than its card records; the card gets a warning."
)
@click.option(
    "--trust-card",
    is_flag=True,
    help="Take all of a card.json at PATH, also prompt and routing, not only what describes the adapter.",
)
@registry_option
@json_option
def add(
    name: str,
    path: str,
    base: str | None,
    quantization: str | None,
    description: str | None,
    tags: tuple[str, ...],
    examples: tuple[str, ...],
    force: bool,
    trust_card: bool,
    registry: str | Path | None,
    as_json: bool,
) -> None:
    """Check the adapter at PATH (a PEFT folder or a hub id) and register it as the next version of NAME.

    \b
    Examples:
      adapterhub add sql ./my-lora --base Qwen/Qwen3-0.6B
      adapterhub add sql organisation/sql-lora --example "Who ordered most?"
    """
    given = {
        "description": description,
        "tags": tags,
        "routing": {"examples": examples} if examples else None,
    }
    fields: dict[str, Any] = {field: value for field, value in given.items() if value}
    adapters = open_registry(registry)
    card = adapters.register(
        name, path, base=base, quantization=quantization, force=force, trust_card=trust_card, **fields
    )
    output.registered(card, as_json)
    _note_back_ends(adapters, card)
    _warn_of_rank(card, registry)
    warn_of_routes(adapters, [card.name])


@click.command()
@click.argument("name", shell_complete=complete_adapter)
@click.option("--force", is_flag=True, help="Remove also what an alias points to.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@registry_option
def rm(name: str, force: bool, yes: bool, registry: str | Path | None) -> None:
    """Remove a version (NAME@3), or with a bare NAME all versions. Their numbers are not reused.

    \b
    Example:
      adapterhub rm sql@2
    """
    from adapterhub.registry import Ref

    adapters = open_registry(registry)
    if (
        Ref.parse(name).version is None
    ):  # a number may be that of an upload that has not ended, which has no card
        with suppress(AdapterInvalidError):  # damaged versions can be removed too
            card = adapters.get(name)
            name = card.ref if "@" in name else name  # an alias may move while the question is open
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("Removal has to be confirmed, and there is no terminal; add --yes.")
        click.confirm(f"Remove {name} from {adapters.location}?", abort=True, err=True)
    adapters.remove(name, force=force)
    output.note(f"Removed {name}.")


@click.command()
@click.argument("name", required=False, shell_complete=complete_adapter)
@registry_option
@json_option
def verify(name: str | None, registry: str | Path | None, as_json: bool) -> None:
    """Check stored adapters again: files, digests, cards, aliases. Exit code 1 if something is wrong.

    \b
    Examples:
      adapterhub verify
      adapterhub verify json
    """
    problems = open_registry(registry).verify(name)
    if as_json:
        output.emit_json([{"ref": problem.ref, "message": problem.message} for problem in problems])
    elif problems:
        output.table(["adapter", "problem"], [(problem.ref, problem.message) for problem in problems])
    else:
        output.note("No problems found.")
    sys.exit(1 if problems else 0)


def _back_ends(adapters: AdapterRegistry, card: AdapterCard) -> list[str]:
    from adapterhub.capabilities import capabilities_of

    with suppress(AdapterInvalidError):  # damaged: `verify` says how
        return [str(found.backend) for found in capabilities_of(adapters.features(card)) if found.runs]
    return []


def _note_back_ends(adapters: AdapterRegistry, card: AdapterCard) -> None:
    """Says which servers do not run the adapter as it is."""
    from adapterhub.capabilities import capabilities_of

    back_ends: dict[str, list[str]] = {}
    for found in capabilities_of(adapters.features(card)):
        if not found.runs:
            back_ends.setdefault(f"{found.reason}. {found.hint}", []).append(found.backend)
    for why, names in back_ends.items():
        output.note(f"Not for {', '.join(names)}: {why}")


def _warn_of_rank(card: AdapterCard, registry: str | Path | None) -> None:
    from adapterhub.config import HubConfig

    limit, rank = HubConfig.load(registry=registry).max_lora_rank, card.peft.max_rank
    if limit is not None and rank > limit:
        output.warn(f"{card.ref} has rank {rank}; with max_lora_rank={limit}, as set here, it is not served.")


def _aliases(adapters: AdapterRegistry, card: AdapterCard) -> str:
    """The aliases of an adapter in a cell: `prod=3, test=3+4`."""
    aliases = adapters.aliases(card.name).items()
    return ", ".join(f"{name}={'+'.join(map(str, alias.shares))}" for name, alias in aliases)


def _summary(card: AdapterCard) -> tuple[str, str, str, str]:
    base = card.base.name or "?"
    return str(card.peft.r), _size(card.peft.size_bytes), base, card.description


def _fields(card: AdapterCard) -> list[tuple[str, str]]:
    peft, base = card.peft, card.base
    kind = "DoRA" if peft.use_dora else "rsLoRA" if peft.use_rslora else "LoRA"
    modules = [peft.target_modules] if isinstance(peft.target_modules, str) else peft.target_modules
    trained_on = f"{base.name or 'unknown'}{f', stored as {base.quantization}' if base.quantization else ''}"
    return [
        ("name", card.ref),
        ("aliases", ", ".join(card.aliases)),
        ("status", card.status),
        ("description", card.description),
        ("tags", ", ".join(card.tags)),
        ("base", trained_on),
        (
            "adapter",
            f"{kind}, rank {peft.r}, alpha {peft.lora_alpha:g}, {peft.dtype}, {_size(peft.size_bytes)}",
        ),
        ("targets", ", ".join([*modules, *peft.target_parameters])),
        ("replaces", _replaced(peft)),
        ("language", ", ".join(card.language)),
        ("license", card.license or ""),
        ("datasets", ", ".join(card.datasets)),
        (
            "evaluation",
            "\n".join(map(_measured, card.evaluation)),
        ),
        ("system prompt", card.prompt.system or ""),
        ("stops", ", ".join(map(repr, card.prompt.stop))),
        ("sampling", _sampling(card)),
        ("routing", f"{len(card.routing.examples)} example requests" if card.routing.examples else ""),
        ("method", card.lineage.method or ""),
        ("parents", "\n".join(f"{p.name}@{p.version}, weight {p.weight}" for p in card.lineage.parents)),
        ("source", card.source.uri if card.source else ""),
        ("digest", card.digest),
        ("created", f"{card.created_at:%Y-%m-%d %H:%M}"),
    ]


def _measured(result: Evaluation) -> str:
    name = f" ({result.metric_name})" if result.metric_name else ""
    return f"{result.dataset_name}: {result.metric_type} {result.metric_value}{name}"


def _replaced(peft: PeftInfo) -> str:
    """The modules and rows of tokens that an adapter replaces."""
    tokens = peft.trainable_token_indices
    rows = tokens if isinstance(tokens, dict) else {"the embedding": tokens} if tokens else {}
    return ", ".join([*peft.modules_to_save, *(f"{len(ids)} rows of {name}" for name, ids in rows.items())])


def _sampling(card: AdapterCard) -> str:
    """The sampling defaults: the card's, and those of the base that it names where the card has none."""
    own, base = card.prompt.generation, _base_sampling(card)
    inherited = [f"{name} {value} (base)" for name, value in base.items() if name not in own]
    return ", ".join([*(f"{name} {value}" for name, value in own.items()), *inherited])


def _base_sampling(card: AdapterCard) -> dict[str, Any]:
    from adapterhub.base.locating import stored_base_folder
    from adapterhub.base.tokenizer_files import TokenizerFiles
    from adapterhub.config import HubConfig
    from adapterhub.engine.generation_config import default_sampling_params

    if card.base.name is None or HubConfig.load().generation_config == "none":
        return {}
    with suppress(ConfigError, ValueError):  # not on this machine, or damaged
        folder = stored_base_folder(card.base.name, revision=card.base.revision)
        return default_sampling_params(TokenizerFiles(folder).generation_config)
    return {}


def _prompt_style(card: AdapterCard) -> str:
    """The prompt style of this adapter on the base that its card names."""
    from adapterhub.base.locating import tokenizer_chat_template
    from adapterhub.requests.prompts import choose_style

    base, template = card.base, None
    unknown = "" if base.name else "The card names no base."
    try:
        template = tokenizer_chat_template(base.name, revision=base.revision) if base.name else None
    except ConfigError as error:
        unknown = error.message
    try:
        style = choose_style(template, card.prompt.format, card.prompt.chat_template)
    except ConfigError as error:
        return f"unknown: {unknown or error.message}"
    return f"unknown: {unknown}" if unknown and style.origin == "default" else str(style)


def _size(size: int) -> str:
    return f"{size / 2**20:.1f} MB" if size >= 2**20 else f"{size / 2**10:.0f} KB"
