"""What follows from the losses of the evaluations: when to stop, and which weights are best.

Everything is read from the run's log, which a checkpoint holds, so a continued run decides the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerState

from adapterhub.training.losses import evaluations

BEST_WEIGHTS_FILE = "best_adapter_model.safetensors"


def best_step(state: TrainerState) -> int | None:
    """The step with the lowest evaluation loss, the first of equals; None without an evaluation."""
    losses = evaluations(state)
    return min(losses, key=losses.__getitem__) if losses else None


def has_stopped_improving(state: TrainerState, patience: int | None) -> bool:
    """Whether the last `patience` evaluations brought no lower loss."""
    best = best_step(state)
    return (
        patience is not None
        and best is not None
        and sum(step > best for step in evaluations(state)) >= patience
    )


class EarlyStopping(TrainerCallback):  # type: ignore[misc]
    """Ends the run, with a last checkpoint, after `patience` evaluations without a lower loss."""

    def __init__(self, patience: int) -> None:
        self._patience = patience

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if has_stopped_improving(state, self._patience):
            control.should_training_stop = control.should_save = True


class BestWeights(TrainerCallback):  # type: ignore[misc]
    """Keeps the LoRA weights of the evaluation with the lowest loss."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._weights: dict[str, torch.Tensor] = {}

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        if best_step(state) == state.global_step:
            weights = get_peft_model_state_dict(self._model, save_embedding_layers=False)
            self._weights = {name: weight.detach().cpu().clone() for name, weight in weights.items()}

    def save(self, folder: Path) -> None:
        """Writes them into a checkpoint, if there was an evaluation."""
        if self._weights:
            save_file(self._weights, folder / BEST_WEIGHTS_FILE)

    def load(self, folder: Path) -> None:
        """Reads them from a checkpoint."""
        if (folder / BEST_WEIGHTS_FILE).is_file():
            self._weights = load_file(folder / BEST_WEIGHTS_FILE)

    def restore(self) -> None:
        """Puts them into the model, if there was an evaluation."""
        if self._weights:
            set_peft_model_state_dict(self._model, self._weights)
