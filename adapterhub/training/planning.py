"""What a run will need, before it begins: parameters, memory by part, steps, and time from a few measured steps."""

from __future__ import annotations

import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from adapterhub.base.fingerprint import weight_files
from adapterhub.base.linear_layers import LinearLayers
from adapterhub.base.loading import training_dtype
from adapterhub.base.locating import locate_base_config
from adapterhub.dataset.records import Record, read_records
from adapterhub.errors import ConfigError
from adapterhub.training.config import FinetuneConfig
from adapterhub.training.losses import TrainingStep
from adapterhub.training.memory_estimate import EmptyBase, MemoryEstimate, estimate_memory
from adapterhub.training.tokenizing import IGNORE_INDEX, TokenizedExample
from adapterhub.training.trainer import train_adapter

_SAMPLING_S = 0.005


@dataclass(frozen=True)
class TrainingPlan:
    """What a run will need.

    Attributes:
        base: The base's name.
        parameters: Its number of weights.
        trainable: Number of LoRA weights.
        compute_dtype: Dtype of activations.
        device: Where it runs.
        batch_tokens: Tokens of the longest batch, padding included.
        memory: Estimated bytes by part, without those of Python and its libraries.
        records: Number of training records; None if the data is not there.
        steps: Optimiser steps of the run; None if it depends on data that is not there.
        measured_memory: Bytes that the measured steps added at their peak; None if none were measured.
        seconds_per_step: Mean over the whole run, from the measured steps; None if none were measured.
    """

    base: str
    parameters: int
    trainable: int
    compute_dtype: str
    device: str
    batch_tokens: int
    memory: MemoryEstimate
    records: int | None
    steps: int | None
    measured_memory: int | None
    seconds_per_step: float | None

    @property
    def seconds(self) -> float | None:
        """Time of all steps; None if it is not known."""
        known = self.steps is not None and self.seconds_per_step is not None
        return self.steps * self.seconds_per_step if known else None  # type: ignore[operator]
