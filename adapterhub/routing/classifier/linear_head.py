"""One-vs-rest linear classifiers with int8 weights: a quarter of the memory, and files hold the exact weights."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np

from adapterhub.routing.classifier.arrays import FloatArray, IntArray

MAX_STEP = 127
"""The largest quantized weight, up and down."""


class LinearHead(NamedTuple):
    """One linear classifier per class.

    Attributes:
        steps: Quantized weights, multiples of their class's scale (columns + 1, classes), int8. The last row is 0: it
            serves n-grams without a column, whose column is -1.
        scales: (classes), float32.
        biases: (classes), float32.
    """

    steps: IntArray
    scales: FloatArray
    biases: FloatArray

    @classmethod
    def zeros(cls, columns: int, classes: int) -> Self:
        """A head whose decision function is 0 everywhere."""
        return cls(
            np.zeros((columns + 1, classes), np.int8),
            np.zeros(classes, np.float32),
            np.zeros(classes, np.float32),
        )

    def decision_function(self, columns: IntArray, values: FloatArray) -> FloatArray:
        """The decision value of each class (classes), given a text's columns and their values (n)."""
        weights = self.steps.take(columns, axis=0).astype(np.float32)
        return np.asarray(values.dot(weights)) * self.scales + self.biases

    def coefficients(self, columns: IntArray, index: int) -> FloatArray:
        """The weights of one class in some columns (n)."""
        return np.asarray(self.steps[columns, index] * self.scales[index])

    def concatenate(self, other: Self) -> Self:
        """The classes of this head, then those of another, which has at least the same columns."""
        missing = len(other.steps) - len(self.steps)
        return type(self)(
            np.hstack([np.pad(self.steps, ((0, missing), (0, 0))), other.steps]),
            np.concatenate([self.scales, other.scales]),
            np.concatenate([self.biases, other.biases]),
        )


def quantize(weights: FloatArray) -> tuple[IntArray, float]:
    """Weights (n) as int8 multiples of a scale (float32), with `MAX_STEP` for the largest."""
    scale = float(np.float32(np.abs(weights).max(initial=0) / MAX_STEP))
    return np.rint(weights * (1 / scale if scale else 0)).astype(np.int8), scale
