"""What a run reports after each step: losses and speed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback

from adapterhub.errors import TrainingError


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


class LossRecorder(TrainerCallback):  # type: ignore[misc]
    """Records losses and time, reports progress, and stops a run whose loss is NaN or infinite."""

    def __init__(self, progress: Callable[[TrainingStep], None] | None) -> None:
        self._progress = progress
        self._losses: list[float] = []
        self.eval_loss: float | None = None
        self._started = time.perf_counter()
        self._seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
        self.eval_loss = logs.get("eval_loss", self.eval_loss)
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise TrainingError(
                f"The loss at step {state.global_step} is {logs['loss']}.", hint="Lower train.learning_rate."
            )
        self._losses.append(logs["loss"])
        self._seconds = time.perf_counter() - self._started
        if self._progress:
            self._progress(
                TrainingStep(
                    state.global_step, state.max_steps, logs["loss"], self.eval_loss, self.steps_per_second
                )
            )

    @property
    def steps(self) -> int:
        """Optimiser steps done."""
        return len(self._losses)

    @property
    def loss(self) -> float:
        """Mean training loss over the last tenth of the steps."""
        last = self._losses[-max(1, len(self._losses) // 10) :]
        return sum(last) / len(last)

    @property
    def steps_per_second(self) -> float:
        """Mean so far, with the time of evaluations."""
        return len(self._losses) / self._seconds if self._seconds else 0.0
