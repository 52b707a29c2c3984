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

    A data card and a picture of the records' lengths are written beside them.

    \b
    Examples:
      adapterhub compose-dataset examples/dataset.yaml
      adapterhub compose-dataset examples/dataset.yaml --train_path train.jsonl --val_path val.jsonl
    """
    from adapterhub.dataset import DatasetConfig
    from adapterhub.dataset import compose_dataset as compose

    fields = {name: value for name, value in given.items() if value is not None}
    paths = {name: path.absolute() for name, path in fields.items() if isinstance(path, Path)}
    settings = DatasetConfig.load(config, **{**fields, **paths})
    with progress("Composing") as show:
        composed = compose(settings, progress=lambda stage, done, total: show(done, total, stage))
    if as_json:
        output.emit(composed.card_path.read_text(encoding="utf-8"), newline=False)
        return
    for path, part in ((composed.train_path, composed.train), (composed.val_path, composed.val)):
        if path:
            output.emit(str(path))
            output.note(f"{path.name}: {len(part):,} records")
    for reason, count in composed.dropped.most_common():
        output.note(f"dropped: {count:,}  {reason}")
    output.note(f"Data card: {composed.card_path.with_suffix('.md')}")
