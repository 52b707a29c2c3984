"""What a training run has found."""

from __future__ import annotations

from dataclasses import dataclass

from adapterhub.base.loading import Base
from adapterhub.requests import prompts
from adapterhub.training.tokenizing import TokenizedDataset


@dataclass(frozen=True)
class TrainingResult:
    """The result of a run.

    Attributes:
        base: The base that was trained on.
        style: How the prompts were rendered.
        stop: The special tokens that end the training answers, where the base does not stop at them by itself.
        train: The tokenised training records.
        validation: The tokenised validation records; None without any.
        steps: Optimiser steps taken, those before an interruption included.
        chosen_step: The step whose weights were written: the last, or with `train.load_best` the best.
        loss: Mean training loss over the last tenth of the steps.
        eval_loss: Evaluation loss of these weights, in nats per answer token; None without one.
        steps_per_second: Mean since the start, or since the checkpoint; 0 if that was the end.
        initial_adapter: The digest of the adapter that the run started from; None for new weights.
    """

    base: Base
    style: prompts.PromptStyle
    stop: tuple[str, ...]
    train: TokenizedDataset
    validation: TokenizedDataset | None
    steps: int
    chosen_step: int
    loss: float
    eval_loss: float | None
    steps_per_second: float
    initial_adapter: str | None
