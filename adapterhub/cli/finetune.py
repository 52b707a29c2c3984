"""`adapterhub finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapterhub.cli import output
from adapterhub.cli.compare import compare_after, compare_option, measure_before
from adapterhub.cli.options import json_option, open_registry, registry_option
from adapterhub.cli.progress import progress

if TYPE_CHECKING:
    from adapterhub.training.losses import TrainingStep


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.option(
    "--resume", is_flag=True, help="Continue from the last checkpoint in output_dir, if there is one."
)
@compare_option
@registry_option
@json_option
def finetune(config: Path, resume: bool, held_out: Path | None, registry: Path | None, as_json: bool) -> None:
    """Fine-tune an adapter on the 4-bit base with the settings in CONFIG (YAML), and register it.

    \b
    Examples:
      adapterhub finetune examples/finetune.yaml
      adapterhub finetune run.yaml --compare held-out.jsonl
    """
    from adapterhub.training.config import FinetuneConfig

    settings = FinetuneConfig.load(config)
    if resume:
        settings = settings.to_resume()
    adapters = open_registry(registry)
    compared = measure_before(settings, held_out) if held_out else None
    # peft and trl take seconds to import, so a mistake in CONFIG is reported first.
    from adapterhub.training.finetuning import finetune as run_finetune

    with progress(f"Training {settings.name}") as show:
        card = run_finetune(
            settings,
            adapters,
            progress=lambda step: show(step.step, step.steps, _losses(step)),
        )
    if not as_json:
        output.emit(card.ref)
    if compared:
        card = compare_after(compared, card, adapters, quiet=as_json)
    if as_json:
        output.emit_json(card.model_dump(mode="json"))


def _losses(step: TrainingStep) -> str:
    losses = {"loss": step.loss, "eval": step.eval_loss}
    shown = [f"{name} {value:.3f}" for name, value in losses.items() if value is not None]
    return "  ".join([*shown, f"{step.steps_per_second:.1f} steps/s"])
