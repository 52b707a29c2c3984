"""`adapterhub finetune --plan`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from adapterhub.cli import output
from adapterhub.cli.progress import progress

if TYPE_CHECKING:
    from adapterhub.training.config import FinetuneConfig
    from adapterhub.training.planning import TrainingPlan


def show_plan(settings: FinetuneConfig, measure: int, as_json: bool) -> None:
    """Prints what a run will need.

    Args:
        settings: The run.
        measure: Steps to measure.
        as_json: Print JSON.
    """
    from adapterhub.training.planning import plan_finetune

    with progress(f"Planning {settings.name}") as show:
        plan = plan_finetune(
            settings,
            measure=measure,
            progress=lambda step: show(step.step, step.steps, "measured"),
            composing=lambda stage, done, total: show(done, total, stage),
        )
    if as_json:
        total = {"total": plan.memory.total}
        output.emit_json(
            {**asdict(plan), "memory": {**asdict(plan.memory), **total}, "seconds": plan.seconds}
        )
        return
    parts = ", ".join(f"{part} {_size(size)}" for part, size in asdict(plan.memory).items() if size)
    share = plan.trainable / plan.parameters
    output.fields(
        [
            ("base", f"{plan.base}: {plan.parameters:,} weights, {settings.quantization or 'unquantised'}"),
            ("adapter", f"{plan.trainable:,} weights, {share:.2%} of the base's"),
            (
                "computing",
                f"{plan.compute_dtype} on {plan.device}, {plan.batch_tokens:,} tokens at most at once",
            ),
            ("memory", f"about {_size(plan.memory.total)}: {parts}"),
            ("measured", _size(plan.measured_memory) if plan.measured_memory else ""),
            ("steps", _steps(plan)),
            ("time", _time(plan)),
        ]
    )


def _steps(plan: TrainingPlan) -> str:
    records = f"{plan.records:,} records" if plan.records is not None else "the data is not here"
    return f"{plan.steps:,} ({records})" if plan.steps is not None else f"unknown: {records}"


def _time(plan: TrainingPlan) -> str:
    if plan.seconds_per_step is None:
        return "unknown: no steps were measured"
    each = f"{plan.seconds_per_step:.2f} s a step"
    return f"about {_duration(plan.seconds)}, {each}" if plan.seconds is not None else each


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(size: int) -> str:
    if size < 10 * 2**20:
        return f"{size / 2**20:.1f} MiB"
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
