"""`adapterhub run-recipe`: the recipes of impruver, with its names of commands, flags and fields."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from adapterhub.cli import output
from adapterhub.cli.chat import UNDERSCORES, chat_options, chat_settings, run_chat
from adapterhub.cli.compose import compose_dataset
from adapterhub.cli.convert_gguf import convert_gguf
from adapterhub.cli.finetune import finetune
from adapterhub.cli.options import SuggestingGroup


class _ConfigOption(click.Option):
    """The configuration, which is an argument of the commands themselves."""

    def __init__(self) -> None:
        super().__init__(
            ["--config"],
            required=True,
            type=click.Path(path_type=Path),
            help="A recipe of impruver, a configuration of adapterhub, or the name of a shipped one.",
        )


@click.group("run-recipe", cls=SuggestingGroup, context_settings=UNDERSCORES)
def run_recipe() -> None:
    """Run a step of a recipe of impruver: compose a dataset, fine-tune, chat, convert to GGUF.

    \b
    Examples:
      adapterhub run-recipe compose_dataset --config recipe.yaml
      adapterhub run-recipe finetune --config recipe.yaml --output_dir=results
      adapterhub run-recipe chat --config recipe.yaml --history_limit=4
      adapterhub run-recipe convert_gguf --config recipe.yaml --quantization_levels='["q8_0"]'
    """


def _as_recipe(name: str, command: click.Command, run: Callable[..., Any] | None) -> click.Command:
    """A command of adapterhub that takes its configuration as impruver's do, with `--config`."""
    others = [parameter for parameter in command.params if parameter.name != "config"]
    return click.Command(
        name,
        params=[_ConfigOption(), *others],
        callback=run,
        help=f"As `adapterhub {command.name}`, of which --config is the argument CONFIG.",
    )


def _finetune(config: Path, **options: Any) -> None:
    _warn_of_no_effect(config)
    if finetune.callback:
        finetune.callback(config=config, **options)


run_recipe.add_command(_as_recipe("compose_dataset", compose_dataset, compose_dataset.callback))
run_recipe.add_command(_as_recipe("finetune", finetune, _finetune))
run_recipe.add_command(_as_recipe("convert_gguf", convert_gguf, convert_gguf.callback))


@run_recipe.command("chat", params=[_ConfigOption()])
@chat_options
def chat_with_recipe(config: Path, output_dir: Path | None, **options: Any) -> None:
    """Chat with the adapter that the configuration trains, or with the last checkpoint in --output-dir."""
    from adapterhub.cli.chat_config import ChatConfig
    from adapterhub.training import FinetuneConfig

    _warn_of_no_effect(config)
    trained = FinetuneConfig.load(config)
    given = chat_settings(options)
    own = {"base": trained.base, "quantization": trained.quantization or "none"}
    settings = {**given, **{name: given[name] or own[name] for name in own}}
    run_chat(ChatConfig.load(adapter=trained.name, **settings), output_dir)


def _warn_of_no_effect(config: Path) -> None:
    from adapterhub.configs import read_config
    from adapterhub.training.impruver import is_impruver, read_impruver

    content, _ = read_config(config)
    names = read_impruver(content, origin=str(config)).without_effect if is_impruver(content) else []
    if names:
        output.warn(f"Of no use here, and left out: {', '.join(names)}.")
