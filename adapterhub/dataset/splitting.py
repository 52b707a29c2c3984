"""Splitting samples into training and validation data, with duplicates on one side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from adapterhub.dataset.near_duplicates import DEFAULT_THRESHOLD, duplicate_groups
from adapterhub.dataset.records import Sample
from adapterhub.dataset.stages import StageOptions
from adapterhub.errors import DatasetError

Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=0, strict=True)]


class SplitOptions(StageOptions):
    """How many samples are held out for validation."""

    val_size: Count | Share = 0.05
    """A whole number: samples to hold out. Below one: their share."""
    threshold: float = Field(DEFAULT_THRESHOLD, gt=0, le=1)
    """Samples of at least this similarity stay on one side; as in `DeduplicationOptions`."""


def split(
    samples: Sequence[Sample], options: SplitOptions, *, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Draws samples for validation; both parts are in a random order. Duplicates and near duplicates stay together.

    Args:
        samples: The samples.
        options: How many to hold out.
        seed: Seed of the draw and of the order.

    Returns:
        The samples to train on, and those to validate on. There are fewer of these than asked for where groups of
        duplicates do not add up to it.

    Raises:
        DatasetError: Nothing would be left to train on, or groups of duplicates are too large to hold any of them out.
    """
    wanted = _wanted(len(samples), options.val_size)
    order = np.random.default_rng(seed).permutation(len(samples)).tolist()
    held_out = _held_out(order, duplicate_groups(samples, options.threshold), wanted) if wanted else set()
    if wanted and not held_out:
        raise DatasetError(
            f"No part of {len(samples):,} samples can be held out: near duplicates stay on one side of the split.",
            hint="Remove duplicates, raise val_size, or raise the split's threshold.",
        )
    return [samples[i] for i in order if i not in held_out], [samples[i] for i in order if i in held_out]


def _wanted(total: int, size: float) -> int:
    """The number of samples to hold out; at least one if it is a share."""
    wanted = max(1, round(size * total)) if isinstance(size, float) else size
    if wanted >= total:
        raise DatasetError(
            f"{wanted:,} samples are to be held out, and there are {total:,}.", hint="Lower val_size."
        )
    return wanted


def _held_out(order: Sequence[int], groups: Sequence[int], wanted: int) -> set[int]:
    """Whole groups of samples, in the order's sequence, as long as they fit."""
    members: dict[int, list[int]] = {}
    for i in order:
        members.setdefault(groups[i], []).append(i)
    held_out: set[int] = set()
    for group in members.values():
        if len(held_out) + len(group) <= wanted:
            held_out.update(group)
    return held_out
