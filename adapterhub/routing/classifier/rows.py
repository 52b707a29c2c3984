"""Linear rows with a byte for each weight: a quarter of the memory, and what is stored is exactly what decides."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np

from adapterhub.routing.classifier.features import FloatArray, IntArray

STEPS = 127
"""The largest step, up and down."""


class Rows(NamedTuple):
    """One linear row per route.

    Attributes:
        steps: The weights, as multiples of their row's scale (columns + 1, rows), int8. The last are all 0: those of
            n-grams without a column, which are given column -1.
        scales: (rows), float32.
        biases: (rows), float32.
    """

    steps: IntArray
    scales: FloatArray
    biases: FloatArray

    @classmethod
    def zeros(cls, columns: int, count: int) -> Self:
        """Rows that say 0 to everything."""
        return cls(
            np.zeros((columns + 1, count), np.int8), np.zeros(count, np.float32), np.zeros(count, np.float32)
        )

    def decisions(self, columns: IntArray, values: FloatArray) -> FloatArray:
        """What each row makes of a text (rows), given its columns and their values (n)."""
        weights = self.steps.take(columns, axis=0).astype(np.float32)
        return np.asarray(values.dot(weights)) * self.scales + self.biases

    def weights(self, columns: IntArray, row: int) -> FloatArray:
        """A row's weights in some columns (n)."""
        return np.asarray(self.steps[columns, row] * self.scales[row])

    def beside(self, others: Self) -> Self:
        """These rows, then others, which have at least their columns."""
        missing = len(others.steps) - len(self.steps)
        return type(self)(
            np.hstack([np.pad(self.steps, ((0, missing), (0, 0))), others.steps]),
            np.concatenate([self.scales, others.scales]),
            np.concatenate([self.biases, others.biases]),
        )


def in_steps(weights: FloatArray) -> tuple[IntArray, float]:
    """One row's weights (n) as multiples of a scale, with `STEPS` for the largest; and the scale, a float32."""
    scale = float(np.float32(np.abs(weights).max(initial=0) / STEPS))
    return np.rint(weights * (1 / scale if scale else 0)).astype(np.int8), scale
