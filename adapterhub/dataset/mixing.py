"""Caps and weights: how much of each source goes into the data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

import numpy as np

from adapterhub.dataset.records import Sample
from adapterhub.dataset.stages import StageResult


def cap(samples: Iterable[Sample], caps: Mapping[str, int | None], *, seed: int) -> StageResult:
    """Keeps at most so many samples of each source, drawn at random, in their order.

    Args:
        samples: The samples.
        caps: The greatest number of samples by source; sources that are not named, or have None, are not capped.
        seed: Seed of the draw.
    """
    samples, result = list(samples), StageResult()
    generator, left_out = np.random.default_rng(seed), set()
    for source, rows in _rows_by_source(samples).items():
        limit = caps.get(source)
        if limit is not None and limit < len(rows):
            left_out.update(generator.permutation(rows)[limit:].tolist())
    result.kept = [sample for row, sample in enumerate(samples) if row not in left_out]
    result.dropped["over the source's maximum"] = len(left_out)
    result.dropped = +result.dropped
    return result


def weigh(samples: Iterable[Sample], weights: Mapping[str, float], *, seed: int) -> StageResult:
    """Repeats or thins out the samples of each source; for training data only, after the split.

    Args:
        samples: The samples.
        weights: How many times the samples of a source are in the data: 2 repeats each, 0.5 keeps a random half, 1.5
            repeats a random half. Sources that are not named count once.
        seed: Seed of the draw and of the order.

    Returns:
        The samples in a random order. `changed` counts the added copies.
    """
    samples, result = list(samples), StageResult()
    generator = np.random.default_rng(seed)
    times = np.ones(len(samples), dtype=np.int64)
    for source, rows in _rows_by_source(samples).items():
        whole, part = divmod(weights.get(source, 1.0), 1)
        times[rows] = int(whole)
        times[generator.permutation(rows)[: round(part * len(rows))]] += 1
    repeated = generator.permutation(np.repeat(np.arange(len(samples)), times))
    result.kept = [samples[row] for row in repeated.tolist()]
    result.dropped["thinned out by weight"] = int((times == 0).sum())
    result.changed["copies added by weight"] = int((times - 1).clip(min=0).sum())
    result.dropped, result.changed = +result.dropped, +result.changed
    return result


def _rows_by_source(samples: Iterable[Sample]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = defaultdict(list)
    for row, sample in enumerate(samples):
        rows[sample.source].append(row)
    return rows
