"""Encoders: any callable from texts to vectors, with a kernel ridge regression whose scores add to those of n-grams.

The kernel is RBF on unit vectors, exp(4 (cosine - 1)). One matrix inverse gives the fit and, in closed form, every
sample's leave-one-out score. From these the encoder's weight is chosen for each script; it is 0 where the encoder
brings no significant gain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from adapterhub.errors import InvalidRequestError, RoutingError
from adapterhub.routing.classifier.arrays import FloatArray

Encoder: TypeAlias = Callable[[Sequence[str]], FloatArray]
"""Texts to vectors (n, dimensions)."""
CANDIDATE_WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)
Z_THRESHOLD = 2.0
"""Standard deviations by which an encoder's gain on held-out examples must differ from chance for it to be used."""
KERNEL_SCALE = 4.0
RIDGE_ALPHA = 0.1
MAX_SAMPLES = 5_000


def encode(encoder: Encoder, texts: Sequence[str]) -> FloatArray:
    """The texts' vectors, each of length 1 (or 0), float32.

    Raises:
        RoutingError: The encoder fails, or does not return one finite vector for each text.
    """
    try:
        vectors = np.asarray(encoder(texts), np.float32)
    except Exception as error:
        name = type(error).__name__  # its text might quote a prompt
        raise RoutingError(f"The encoder failed ({name}).", hint="Try it on a list of texts.") from error
    if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
        raise RoutingError(
            f"The encoder returned an array of shape {vectors.shape} for {len(texts)} texts.",
            hint="It must return one finite vector for each text.",
        )
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def kernel(left: FloatArray, right: FloatArray) -> FloatArray:
    """The kernel of every pair (n, m)."""
    return np.exp(KERNEL_SCALE * (left @ right.T - 1))


@dataclass(frozen=True)
class EncoderHead:
    """A fitted regression on an encoder's vectors.

    Attributes:
        encoder: Texts to vectors.
        vectors: The samples' vectors (n, dimensions).
        coefficients: (n, routes).
        weights: Script -> weight relative to the linear score; 0 for scripts without one.
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
        return kernel(encode(self.encoder, texts), self.vectors) @ self.coefficients


def fit_ridge(vectors: FloatArray, targets: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Kernel ridge regression: coefficients (n, routes), and leave-one-out scores of all samples (n, routes).

    Args:
        vectors: The samples' unit vectors (n, dimensions).
        targets: 1 where a sample belongs to a route, else 0 (n, routes).

    Raises:
        InvalidRequestError: There are more than `MAX_SAMPLES` samples.
    """
    if len(vectors) > MAX_SAMPLES:
        raise InvalidRequestError(
            f"An encoder takes up to {MAX_SAMPLES} examples, not {len(vectors)}.",
            hint="Leave the encoder out; with so many examples the n-grams do nearly as well.",
        )
    inverse = np.linalg.inv(kernel(vectors, vectors).astype(np.float64) + RIDGE_ALPHA * np.eye(len(vectors)))
    coefficients = inverse @ targets
    left_out = targets - coefficients / np.diag(inverse)[:, None]
    return coefficients.astype(np.float32), left_out.astype(np.float32)
