"""Splitting samples into training and validation data, with duplicates on one side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from adapterhub.dataset.near_duplicates import DEFAULT_THRESHOLD, duplicate_groups
from adapterhub.dataset.records import Record, Sample
from adapterhub.dataset.stages import Progress, StageOptions
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
    samples: Sequence[Sample],
    options: SplitOptions,
    *,
    seed: int,
    are_distinct: bool = False,
    progress: Progress | None = None,
) -> tuple[list[Sample], list[Sample]]:
    """Draws samples for validation; both parts are in a random order. Duplicates and near duplicates stay together.

    Args:
        samples: The samples.
        options: How many to hold out.
        seed: Seed of the draw and of the order.
        are_distinct: Near duplicates have been removed already, and are not searched for.
        progress: Called now and then while they are searched for.

    Returns:
        The samples to train on, and those to validate on.

    Raises:
        DatasetError: As for `hold_out`.
    """
    records = [sample.compared for sample in samples]
    held_out = hold_out(
        records,
        options.val_size,
        seed=seed,
        threshold=options.threshold,
        are_distinct=are_distinct,
        progress=progress,
    )
    order = _order(len(samples), seed)
    return [samples[i] for i in order if i not in held_out], [samples[i] for i in order if i in held_out]


def hold_out(
    records: Sequence[Record],
    size: float,
    *,
    seed: int,
    threshold: float = DEFAULT_THRESHOLD,
    are_distinct: bool = False,
    progress: Progress | None = None,
) -> set[int]:
    """Draws records for validation, of each group of near duplicates all or none.

    Args:
        records: The records.
        size: How many, or below one their share.
        seed: Seed of the draw.
        threshold: Similarity of near duplicates, as in `DeduplicationOptions`.
        are_distinct: Near duplicates have been removed already, and are not searched for.
        progress: Called now and then while they are searched for.

    Returns:
        The indices of these records. They are fewer than asked for where groups do not add up to it.

    Raises:
        DatasetError: Nothing would be left to train on, or all groups are too large to be held out.
    """
    wanted = _wanted(len(records), size)
    if not wanted:
        return set()
    groups = range(len(records)) if are_distinct else duplicate_groups(records, threshold, progress)
    held_out = _whole_groups(_order(len(records), seed), groups, wanted)
    if not held_out:
        raise DatasetError(
            f"No part of {len(records):,} records can be held out: near duplicates stay on one side of the split.",
            hint="Remove duplicates, hold out more, or give a validation file.",
        )
    return held_out


def _order(count: int, seed: int) -> list[int]:
    order: list[int] = np.random.default_rng(seed).permutation(count).tolist()
    return order


def _wanted(total: int, size: float) -> int:
    """The number of records to hold out; of a share at least one, and not all."""
    wanted = max(1, min(round(size * total), total - 1)) if 0 < size < 1 else int(size)
    if wanted and wanted >= total:
        raise DatasetError(
            f"To hold out {wanted:,} of {total:,} records leaves none to train on.",
            hint="Hold out fewer, or add records.",
        )
    return wanted


def _whole_groups(order: Sequence[int], groups: Sequence[int], wanted: int) -> set[int]:
    """Whole groups of records, in the order's sequence, as long as they fit."""
    members: dict[int, list[int]] = {}
    for i in order:
        members.setdefault(groups[i], []).append(i)
    held_out: set[int] = set()
    for group in members.values():
        if len(held_out) + len(group) <= wanted:
            held_out.update(group)
    return held_out
