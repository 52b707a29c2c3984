"""The command that copies a registry: folder to URL, URL to folder, and between two of a kind."""

from __future__ import annotations

from dataclasses import asdict

import click

from adapterhub.cli import output
from adapterhub.cli.options import RegistryLocation, json_option, open_registry
from adapterhub.cli.progress import progress


@click.command()
@click.argument("source", metavar="SRC", type=RegistryLocation())
@click.argument("destination", metavar="DST", type=RegistryLocation())
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--no-aliases", is_flag=True, help="Leave the aliases of DST as they are.")
@click.option("--dry-run", is_flag=True, help="Only show what would be done.")
@json_option
def sync(
    source: str, destination: str, names: tuple[str, ...], no_aliases: bool, dry_run: bool, as_json: bool
) -> None:
    """Copy the adapters that the registry DST lacks from the registry SRC, then their aliases.

    Both are folders or URLs such as s3://bucket/prefix. Nothing is removed from DST. One that was interrupted goes on
    where it was.

    \b
    Examples:
      adapterhub sync ./adapters s3://my-bucket/adapters
      adapterhub sync hf://organisation/adapters ./adapters sql json --dry-run
    """
    from adapterhub.registry.remote import sync_registry

    with progress("Copying") as show:
        steps = sync_registry(
            open_registry(source),
            open_registry(destination),
            names,
            aliases=not no_aliases,
            dry_run=dry_run,
            progress=show,
        )
    if as_json:
        output.emit_json([asdict(step) for step in steps])
        return
    if steps:
        rows = [(step.action, step.ref, str(step.version), f"{step.size_bytes:,}") for step in steps]
        output.table(["action", "adapter", "version", "bytes"], rows)
    else:
        output.note("Nothing to copy.")
