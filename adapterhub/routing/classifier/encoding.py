"""An encoder on top of the n-grams: any callable from texts to vectors, with a kernel ridge regression on them.

The kernel is exp(4 (cosine - 1)). Its fit is one matrix inverse, which also gives every example's held-out score in
closed form, so that the encoder's weight is chosen for each script by what it does on examples it was not fitted on. A
script on which it does not help gets weight 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from adapterhub.errors import RoutingError
from adapterhub.routing.classifier.features import FloatArray

Encoder: TypeAlias = Callable[[Sequence[str]], FloatArray]
"""Texts to vectors (n, dimensions)."""
WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
SURE = 2.0
"""Standard deviations that an encoder's gain on held-out examples must be from chance for it to be used."""
SHARPNESS = 4.0
RIDGE = 0.1
MOST_EXAMPLES = 5_000


def encoded(encoder: Encoder, texts: Sequence[str]) -> FloatArray:
    """The texts' vectors, each of length 1 (or 0), float32.

    Raises:
        RoutingError: The encoder fails, or gives something else than one finite vector for each text.
    """
    try:
        vectors = np.asarray(encoder(texts), np.float32)
    except Exception as error:
        raise RoutingError(f"The encoder failed: {error}.", hint="Try it on a list of texts.") from error
    if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
        raise RoutingError(
            f"The encoder gave an array of shape {vectors.shape} for {len(texts)} texts.",
            hint="It must give one finite vector for each text.",
        )
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def kernel(left: FloatArray, right: FloatArray) -> FloatArray:
    """The kernel of every pair (n, m)."""
    return np.exp(SHARPNESS * (left @ right.T - 1))


@dataclass(frozen=True)
class EncoderHead:
    """A fitted regression on an encoder's vectors.

    Attributes:
        encoder: Texts to vectors.
        vectors: The samples' vectors (n, dimensions).
        coefficients: (n, routes).
        weights: Script -> weight beside the linear score; a script that is not there has 0.
    """

    encoder: Encoder
    vectors: FloatArray
    coefficients: FloatArray
    weights: Mapping[str, float]

    def weight(self, script: str) -> float:
        """The weight for a script."""
        return self.weights.get(script, 0.0)

    def scores(self, texts: Sequence[str]) -> FloatArray:
        """One score per text and route (n, routes), about 0 to 1."""
        return kernel(encoded(self.encoder, texts), self.vectors) @ self.coefficients


def fit_ridge(vectors: FloatArray, targets: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The regression's coefficients (n, routes), and every sample's score with itself left out (n, routes).

    Args:
        vectors: The samples' vectors of length 1 (n, dimensions).
        targets: 1 where a sample belongs to a route, else 0 (n, routes).

    Raises:
        RoutingError: There are more samples than the closed form is for.
    """
    if len(vectors) > MOST_EXAMPLES:
        raise RoutingError(
            f"An encoder takes up to {MOST_EXAMPLES} examples, not {len(vectors)}.",
            hint="Leave the encoder out; with so many examples the n-grams do nearly as well.",
        )
    inverse = np.linalg.inv(kernel(vectors, vectors).astype(np.float64) + RIDGE * np.eye(len(vectors)))
    coefficients = inverse @ targets
    left_out = targets - coefficients / np.diag(inverse)[:, None]
    return coefficients.astype(np.float32), left_out.astype(np.float32)
