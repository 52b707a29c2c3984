"""The losses of a run: reported after each step, kept in the trainer's log, written as a table and a picture."""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

from adapterhub._files import os_errors_as, write_atomic
from adapterhub.errors import TrainingError
from adapterhub.reports import line_chart

LOSSES_FILE = "losses.csv"
CHART_FILE = "losses.svg"
_COLUMNS = ("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm")


@dataclass(frozen=True)
class TrainingStep:
    """The progress of a run after a step.

    Attributes:
        step: Optimiser steps done.
        steps: Optimiser steps of the whole run.
        loss: The last training loss, in nats per answer token; None before the first.
        eval_loss: The loss of the last evaluation; None before the first.
        steps_per_second: Mean so far, with the time of evaluations.
    """

    step: int
    steps: int
    loss: float | None
    eval_loss: float | None
    steps_per_second: float


class LossReporter(TrainerCallback):  # type: ignore[misc]
    """Reports progress, and stops a run whose loss is NaN or infinite."""

    def __init__(self, progress: Callable[[TrainingStep], None] | None) -> None:
        self._progress = progress
        self._eval_loss: float | None = None
        self._first_step, self._started = 0, time.perf_counter()
        self.steps_per_second = 0.0

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        self._first_step, self._started = state.global_step, time.perf_counter()
        self._eval_loss = next(iter(reversed(_logged(state, "eval_loss").values())), None)

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: dict[str, float], **_: Any) -> None:
        self._eval_loss = logs.get("eval_loss", self._eval_loss)
        if "loss" not in logs:
            return
        step, loss = state.global_step, logs["loss"]
        if not math.isfinite(loss):
            raise TrainingError(f"The loss at step {step} is {loss}.", hint="Lower train.learning_rate.")
        self.steps_per_second = (step - self._first_step) / (time.perf_counter() - self._started)
        if self._progress:
            self._progress(TrainingStep(step, state.max_steps, loss, self._eval_loss, self.steps_per_second))


def final_loss(state: TrainerState) -> float:
    """Mean training loss over the last tenth of the steps."""
    losses = list(_logged(state, "loss").values())
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def evaluations(state: TrainerState) -> dict[int, float]:
    """The loss of each evaluation after the first step, by its step."""
    return {step: loss for step, loss in _logged(state, "eval_loss").items() if step > 0}


def _logged(state: TrainerState, name: str) -> dict[int, float]:
    return {int(entry["step"]): entry[name] for entry in state.log_history if name in entry}


def write_losses(state: TrainerState, folder: Path) -> None:
    """Writes `losses.csv`, one line for each step, and `losses.svg`.

    Args:
        state: The trainer's.
        folder: An existing folder.

    Raises:
        TrainingError: They cannot be written.
        ConfigError: matplotlib is not installed.
    """
    rows: dict[int, dict[str, float]] = {}
    for entry in state.log_history:
        if "loss" in entry or "eval_loss" in entry:
            rows.setdefault(int(entry["step"]), {}).update(entry)
    table = io.StringIO()
    writer = csv.DictWriter(table, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[step] for step in sorted(rows))
    lines = {"training": "loss", "validation": "eval_loss"}
    series = {title: list(_logged(state, name).items()) for title, name in lines.items()}
    chart = line_chart(
        {title: points for title, points in series.items() if points},
        title="Losses",
        x_label="step",
        y_label="nats per answer token",
    )
    with os_errors_as(TrainingError, "The losses could not be written"):
        write_atomic(folder / LOSSES_FILE, table.getvalue().encode())
        write_atomic(folder / CHART_FILE, chart.encode())
