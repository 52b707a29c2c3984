"""`adapterhub finetune`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypedDict, TypeVar

import click

from adapterhub.cli import output
from adapterhub.cli.compare import ComparedRun, compare_options
from adapterhub.cli.finetune_plan import show_plan
from adapterhub.cli.options import json_option, open_registry, registry_option
from adapterhub.cli.progress import Show, progress

if TYPE_CHECKING:
    from adapterhub.dataset.stages import Progress
    from adapterhub.registry import AdapterRegistry
    from adapterhub.training.config import FinetuneConfig
    from adapterhub.training.losses import TrainingStep
    from adapterhub.training.masked_example import MaskedExample
    from adapterhub.training.trainer import RunStart
    from adapterhub.training.training_result import TrainingResult

F = TypeVar("F", bound=Callable[..., Any])

_SETTINGS = {
    "train_path": "data.train",
    "val_path": "data.validation",
    "output_dir": "output_dir",
    "report_to": "report_to",
    "seed": "train.seed",
}
"""Flag -> the setting that it replaces."""


def run_options(function: F) -> F:
    """The flags that replace settings of the configuration."""
    path = click.Path(path_type=Path)
    options = [
        click.option("--train-path", "--train_path", type=path, help="data.train: train on this file."),
        click.option("--val-path", "--val_path", type=path, help="data.validation: evaluate on this file."),
        click.option(
            "--output-dir", "--output_dir", type=path, help="Also write checkpoint-N and result.json there."
        ),
        click.option(
            "--report-to",
            "--report_to",
            type=click.Choice(["none", "tensorboard", "wandb"]),
            help="Report losses there.",
        ),
        click.option("--seed", type=click.IntRange(0), help="train.seed."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def load_settings(config: Path, flags: dict[str, Any]) -> FinetuneConfig:
    """The configuration, with the settings that flags replace."""
    from adapterhub.training.config import FinetuneConfig

    given = {name: value for name, value in flags.items() if value is not None}
    changes = {
        _SETTINGS[name]: Path.cwd() / value if isinstance(value, Path) else value
        for name, value in given.items()
    }
    return FinetuneConfig.load(config, changes)


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@run_options
@click.option("--smoke", is_flag=True, help="Try it: at most 20 steps, and nothing is registered or written.")
@click.option(
    "--show-example/--no-show-example",
    default=None,
    help="Show the first example with what is learned of it, and train nothing; a run on a terminal begins with it.",
)
@click.option(
    "--resume", is_flag=True, help="Continue from the last checkpoint in output_dir, if there is one."
)
@click.option(
    "--plan", is_flag=True, help="Estimate memory by part, steps and time, and train nothing that stays."
)
@click.option(
    "--plan-steps",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    help="With --plan: measure so many steps, where base and data are here; 0 loads no weights.",
)
@compare_options
@registry_option
@json_option
def finetune(
    config: Path,
    smoke: bool,
    show_example: bool | None,
    resume: bool,
    plan: bool,
    plan_steps: int,
    held_out: str | None,
    compare_prompts: Path | None,
    registry: str | Path | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Fine-tune an adapter on the 4-bit base with the settings in CONFIG (YAML or JSON), and register it.

    \b
    Examples:
      adapterhub finetune examples/finetune.yaml
      adapterhub finetune run.json --output-dir results --seed 1
      adapterhub finetune run.yaml --smoke
      adapterhub finetune lora/qwen3_0.6b --plan
      adapterhub finetune run.yaml --compare held-out.jsonl
    """
    if compare_prompts and not held_out:
        raise click.UsageError("--compare-prompts belongs to --compare.")
    if held_out and (smoke or plan or show_example):
        raise click.UsageError("--compare measures a whole run: not with --smoke, --plan or --show-example.")
    settings = load_settings(config, flags)
    if show_example:
        _show_example(settings, as_json)
        return
    if plan:
        show_plan(settings, plan_steps, as_json)
        return
    adapters = open_registry(registry)
    look = sys.stderr.isatty() if show_example is None else False
    if smoke:
        _smoke(settings, adapters, look, as_json)
        return
    if resume:
        settings = settings.to_resume()
    compared = ComparedRun(settings, held_out, compare_prompts) if held_out else None
    # peft and trl take seconds to import, so a mistake in CONFIG is reported first.
    from adapterhub.training.finetuning import finetune as run_finetune

    with progress(f"Training {settings.name}") as show:
        measure = (lambda ready: compared.measure_base(ready, show)) if compared else None
        card = run_finetune(
            settings, adapters, prepared=measure, **_reports(show, look, settings.train.logging_steps)
        )
    if not as_json:
        output.emit(card.ref)
    if compared:
        card = compared.finish(card, adapters, quiet=as_json)
    if as_json:
        output.emit_json(card.model_dump(mode="json"))


def _smoke(settings: FinetuneConfig, adapters: AdapterRegistry, look: bool, as_json: bool) -> None:
    from adapterhub.training.finetuning import smoke_test

    losses: list[float] = []
    with progress(f"Trying {settings.name}") as show:
        reports = _reports(show, look, settings.train.logging_steps)
        shown = reports["progress"]

        def step(done: TrainingStep) -> None:
            losses.append(done.loss or 0.0)
            shown(done)

        reports["progress"] = step
        result = smoke_test(settings, adapters, **reports)
    if as_json:
        output.emit_json(_figures(result, losses))
    else:
        output.emit(
            f"It works: loss {losses[0]:.3f} to {losses[-1]:.3f} in {result.steps} steps, "
            f"{result.steps_per_second:.1f} steps/s. Nothing was registered."
        )


def _figures(result: TrainingResult, losses: list[float]) -> dict[str, Any]:
    return {
        "steps": result.steps,
        "losses": losses,
        "eval_loss": result.eval_loss,
        "steps_per_second": result.steps_per_second,
        "records_truncated": result.train.truncated,
        "records_dropped": result.train.dropped,
    }


class _Reports(TypedDict):
    progress: Callable[[TrainingStep], None]
    composing: Progress
    started: Callable[[RunStart], None]


def _reports(show: Show, look: bool, every: int | None) -> _Reports:
    """What a run calls back, shown on stderr."""

    def started(run: RunStart) -> None:
        held_out = f", {run.held_out} held out" if run.held_out else ""
        output.note(f"{run.records} examples{held_out}; computing in {run.compute_dtype} on {run.device}.")
        if look:
            output.note(_coloured(run.example, sys.stderr))

    def step(done: TrainingStep) -> None:
        show(done.step, done.steps, _losses(done), due=None if every is None else done.step % every == 0)

    return {
        "progress": step,
        "composing": _stages(show),
        "started": started,
    }


def _stages(show: Show) -> Progress:
    """Shows how far composing the data and holding out records are."""
    return lambda stage, done, total: show(done, total, stage)


def _show_example(settings: FinetuneConfig, as_json: bool) -> None:
    from adapterhub.training.preparing import with_composed_data
    from adapterhub.training.trainer import first_example

    with progress(f"Reading {settings.name}") as show:
        searching = _stages(show)
        with with_composed_data(settings, searching) as ready:
            example = first_example(ready, searching)
    if as_json:
        parts = [{"text": text, "learned": learned} for text, learned in example.parts]
        output.emit_json({"parts": parts, "tokens": example.tokens, "learned": example.learned})
    else:
        output.emit(_coloured(example, sys.stdout))


def _coloured(example: MaskedExample, stream: TextIO) -> str:
    """The example's text; what is learned is green, and in brackets where there are no colours."""
    bracketed = output.style("x", fg="green") == "x" or not stream.isatty()
    parts = [_part(text, learned, bracketed) for text, learned in example.parts]
    return f"{''.join(parts)}\n({example.learned} of {example.tokens} tokens are learned)"


def _part(text: str, learned: bool, bracketed: bool) -> str:
    shown = "".join(character if character.isprintable() or character == "\n" else " " for character in text)
    if not learned:
        return output.style(shown, dim=True)
    return f"[[{shown}]]" if bracketed else output.style(shown, fg="green")


def _losses(step: TrainingStep) -> str:
    losses = {"loss": step.loss, "eval": step.eval_loss}
    shown = [f"{name} {value:.3f}" for name, value in losses.items() if value is not None]
    return "  ".join([*shown, f"{step.steps_per_second:.1f} steps/s"])
