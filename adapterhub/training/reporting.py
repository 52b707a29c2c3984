"""Losses in TensorBoard or Weights & Biases, through transformers' callbacks."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, WandbCallback

from adapterhub.errors import ConfigError
from adapterhub.training.config import FinetuneConfig


def report_callbacks(config: FinetuneConfig) -> list[TrainerCallback]:
    """The callbacks that `report_to` asks for; nothing is written or sent before the first step.

    Args:
        config: The run. TensorBoard's files go to `runs/` in its output folder; Weights & Biases takes its settings,
            such as the project, from the environment.

    Raises:
        ConfigError: The package is not installed.
    """
    match config.report_to:
        case "tensorboard":
            _need("tensorboard")
            callback = TensorBoardCallback()
            callback.logging_dir = str(Path(config.output_dir or "") / "runs")
            return [callback]
        case "wandb":
            _need("wandb")
            return [WandbCallback()]
    return []


def _need(package: str) -> None:
    if find_spec(package) is None:
        raise ConfigError(
            f"report_to is {package!r}, which is not installed.",
            hint=f"pip install {package}, or set report_to: none.",
        )
