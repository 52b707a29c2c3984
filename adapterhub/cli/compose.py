"""`adapterhub compose-dataset`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from adapterhub.cli import output
from adapterhub.cli.options import json_option
from adapterhub.cli.progress import progress


@click.command("compose-dataset")
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--train-path",
    "--train_path",
    type=click.Path(path_type=Path),
    help="The file of training records, in place of CONFIG's.",
)
@click.option(
    "--val-path",
    "--val_path",
    type=click.Path(path_type=Path),
    help="The file of held-out records, in place of CONFIG's.",
)
@click.option("--seed", type=click.IntRange(0), help="Seed of all that is drawn, in place of CONFIG's.")
@json_option
def compose_dataset(config: Path, as_json: bool, **given: Any) -> None:
    """Compose training data from the sources in CONFIG (YAML or JSON), as JSON Lines for `adapterhub finetune`.

    \b
    Example:
      adapterhub compose-dataset examples/dataset.yaml
    """
    from adapterhub.dataset import DatasetConfig
    from adapterhub.dataset import compose_dataset as compose

    settings = DatasetConfig.load(config)
    settings = settings.model_copy(update={name: value for name, value in given.items() if value is not None})
    with progress("Composing") as show:
        composed = compose(settings, progress=lambda stage, done, total: show(done, total, stage))
    output.emit(str(composed.train_path))
