"""`adapterhub ls-configs` and `adapterhub cp-config`."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem

from adapterhub.cli import output
from adapterhub.cli.options import json_option


def _complete(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    from adapterhub.configs import shipped_configs

    return [CompletionItem(config.name) for config in shipped_configs() if config.name.startswith(begun)]


@click.command("ls-configs")
@json_option
def ls_configs(as_json: bool) -> None:
    """List the configurations that ship with the package.

    `adapterhub finetune` takes them by name; `adapterhub cp-config` copies one to be changed.

    \b
    Example:
      adapterhub ls-configs
    """
    from adapterhub.configs import shipped_configs

    configs = shipped_configs()
    if as_json:
        output.emit_json(
            [
                {
                    "name": config.name,
                    "command": config.command,
                    "base": config.base,
                    "description": config.description,
                }
                for config in configs
            ]
        )
        return
    rows = [(config.name, config.base or "-", config.description) for config in configs]
    output.table(("CONFIG", "BASE", "DESCRIPTION"), rows, cut=True)


@click.command("cp-config")
@click.argument("name", shell_complete=_complete)
@click.argument("target", type=click.Path(path_type=Path), default=Path())
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("-n", "--no-clobber", is_flag=True, help="Leave files that exist, without an error.")
@click.option("--make-parents", is_flag=True, help="Make the target's folder if there is none.")
@json_option
def cp_config(
    name: str, target: Path, force: bool, no_clobber: bool, make_parents: bool, as_json: bool
) -> None:
    """Copy the shipped configuration NAME to TARGET (a file or folder; by default the current one), to be changed.

    The files that it needs, such as a system prompt, go beside it.

    \b
    Examples:
      adapterhub cp-config lora/qwen3_0.6b
      adapterhub cp-config jokes/tinyllama_1.1b my-jokes.yaml
    """
    from adapterhub.configs import copy_config

    if force and no_clobber:
        raise click.UsageError("Give --force or --no-clobber, not both.")
    written = copy_config(name, target, overwrite=force, keep=no_clobber, make_parents=make_parents)
    if as_json:
        output.emit_json([str(path) for path in written])
        return
    for path in written:
        output.emit(str(path))
