"""`adapterhub alias`: which versions answer for a name, and which gets copies of their requests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterhub.cli import output
from adapterhub.cli.options import complete_adapter, open_registry, registry_option

if TYPE_CHECKING:
    from adapterhub.registry import AdapterRegistry, Alias

_SHARE = re.compile(r"([1-9][0-9]{0,8})=([1-9][0-9]{0,6})")


@click.command()
@click.argument("name", shell_complete=complete_adapter)
@click.argument("alias_name", metavar="ALIAS")
@click.argument("versions", nargs=-1, metavar="[VERSION | VERSION=WEIGHT...]")
@click.option("--shadow", type=click.IntRange(1), help="The version that gets copies of requests.")
@click.option(
    "--percent",
    type=click.FloatRange(0, 100, min_open=True),
    help="Share of the requests that are copied.  [default: 5]",
)
@click.option("--no-shadow", is_flag=True, help="Send no more copies.")
@click.option("--delete", is_flag=True, help="Remove the alias.")
@registry_option
def alias(
    name: str,
    alias_name: str,
    versions: tuple[str, ...],
    shadow: int | None,
    percent: float | None,
    no_shadow: bool,
    delete: bool,
    registry: str | Path | None,
) -> None:
    """Point ALIAS at a VERSION of NAME, so that NAME@ALIAS means it; without VERSION, print what it means.

    Several versions with weights share the requests, for a canary. A shadow gets copies, and nobody sees its answers.

    \b
    Examples:
      adapterhub alias sql prod
      adapterhub alias sql prod 3
      adapterhub alias sql prod 3=90 4=10
      adapterhub alias sql prod --shadow 5 --percent 10
      adapterhub alias sql prod --delete
    """
    changes_shadow = shadow is not None or no_shadow
    _check_usage(
        changes_versions=bool(versions), shadow=shadow, percent=percent, no_shadow=no_shadow, delete=delete
    )
    adapters = open_registry(registry)
    if delete:
        adapters.alias(name, alias_name, None)
        output.note(f"Removed {name}@{alias_name}.")
        return
    target, share = _target(versions), 5.0 if percent is None else percent
    if target is None and not changes_shadow:
        output.emit(f"{name}@{alias_name} is {describe_alias(name, _existing(adapters, name, alias_name))}.")
        return
    if target is None:
        adapters.shadow(name, alias_name, shadow, share)
    else:
        adapters.alias(name, alias_name, _shadowed(target, shadow, share) if changes_shadow else target)
    output.note(f"{name}@{alias_name} is {describe_alias(name, adapters.aliases(name)[alias_name])}.")


def describe_alias(name: str, alias: Alias) -> str:
    """What an alias means, in words.

    Args:
        name: The adapter's name.
        alias: The alias.
    """
    shares = alias.shares.items()
    answering = (
        [f"{100 * share:.4g} % {name}@{version}" for version, share in shares] if alias.is_split else []
    )
    meaning = ", ".join(answering) or f"{name}@{alias.version}"
    shadow = alias.shadow
    return f"{meaning}; copies of {shadow.percent:g} % to {name}@{shadow.version}" if shadow else meaning


def _check_usage(
    *, changes_versions: bool, shadow: int | None, percent: float | None, no_shadow: bool, delete: bool
) -> None:
    if delete and (changes_versions or shadow is not None or no_shadow):
        raise click.UsageError("--delete removes the alias; give nothing else.")
    if no_shadow and shadow is not None:
        raise click.UsageError("Give either --shadow or --no-shadow.")
    if percent is not None and shadow is None:
        raise click.UsageError("--percent is the share of a --shadow.")


def _shadowed(target: int | dict[int, int], shadow: int | None, percent: float) -> Alias:
    from adapterhub.registry import Alias

    return Alias.of(target).shadowed(shadow, percent)


def _existing(adapters: AdapterRegistry, name: str, alias_name: str) -> Alias:
    from adapterhub.errors import AdapterNotFoundError

    if found := adapters.aliases(name).get(alias_name):
        return found
    raise AdapterNotFoundError(
        f"There is no alias '{name}@{alias_name}'.",
        hint=f"Give the version that it shall mean: `adapterhub alias {name} {alias_name} VERSION`.",
    )


def _target(versions: tuple[str, ...]) -> int | dict[int, int] | None:
    """The version, or version -> weight; None if none was given."""
    if len(versions) == 1 and re.fullmatch(r"[1-9][0-9]{0,8}", versions[0]):
        return int(versions[0])
    shares = [_SHARE.fullmatch(given) for given in versions]
    weights = {int(share[1]): int(share[2]) for share in shares if share}
    if len(weights) < len(versions):
        raise click.UsageError("Give a version, such as 3, or versions with weights, such as 3=90 4=10.")
    return weights or None
