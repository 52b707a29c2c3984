"""One linear row per route, fitted against all other examples: scikit-learn's `LinearSVC`, one against the rest.

From a few thousand examples on, a row is fitted against the examples nearest to its own and some random ones, so that
the time grows with the number of routes and not with its square.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from adapterhub.routing.features import BoolArray, FloatArray, IntArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array


NONE = "~none"
"""The row of requests that are for no adapter; no adapter can be called that."""
COUNTEREXAMPLES = 20
"""Others' samples that a row is fitted against, for each of its own: two thirds the nearest, the rest random."""
LEAST = 200
_BLOCK = 64
"""Rows that are turned into columns at a time: one by one, each number would be written to another cache line."""


@dataclass(frozen=True)
class Samples:
    """What rows are fitted on.

    Attributes:
        features: One row per sample (n, columns).
        owners: The route of each sample (n), or `NONE`.
        against: The one route that a sample is a counterexample of (n), or "" for a sample of its owner.
    """

    features: csr_array
    owners: np.ndarray
    against: np.ndarray

    @cached_property
    def general(self) -> BoolArray:
        """Which samples count for every route (n)."""
        return np.asarray(self.against == "")

    @cached_property
    def _codes(self) -> tuple[dict[str, int], IntArray]:
        names, codes = np.unique(self.owners.astype(str), return_inverse=True)
        return {name: code for code, name in enumerate(names.tolist())}, codes

    def of(self, route: str) -> BoolArray:
        """Which samples are the route's own (n)."""
        names, codes = self._codes
        return np.asarray(codes == names.get(route, -1)) & self.general

    def usable(self, route: str) -> BoolArray:
        """Which samples its row may be fitted on (n)."""
        return self.general if self.general.all() else self.general | (self.against == route)

    def without(self, held_out: BoolArray) -> Samples:
        """All but some samples; `held_out` is a mask (n)."""
        kept = ~held_out
        return Samples(self.features[kept], self.owners[kept], self.against[kept])

    def joined(self, others: Samples) -> Samples:
        """These samples and others, whose features have these columns first."""
        from scipy.sparse import csr_array, vstack

        mine, width = self.features, others.features.shape[1]
        widened = csr_array((mine.data, mine.indices, mine.indptr), shape=(mine.shape[0], width))
        return Samples(
            vstack([widened, others.features], format="csr"),
            np.concatenate([self.owners, others.owners]),
            np.concatenate([self.against, others.against]),
        )


def fit_rows(samples: Samples, routes: Iterable[str]) -> tuple[FloatArray, FloatArray]:
    """Fits the row of each route.

    Returns:
        Weights (columns, routes) and biases (routes), float32. The weights are rounded to 255 steps of the largest of
        their row, so that what is stored in a byte each is exactly what decides.
    """
    from sklearn import config_context

    names = list(routes)
    weights = np.zeros((samples.features.shape[1], len(names)), np.float32)
    biases = np.zeros(len(names), np.float32)
    with config_context(assume_finite=True, skip_parameter_validation=True):
        for start in range(0, len(names), _BLOCK):
            fitted = [_fit_row(samples, name) for name in names[start : start + _BLOCK]]
            weights[:, start : start + _BLOCK] = np.transpose([row for row, _ in fitted])
            biases[start : start + _BLOCK] = [bias for _, bias in fitted]
    return weights, biases


def _fit_row(samples: Samples, route: str) -> tuple[FloatArray, float]:
    from sklearn.svm import LinearSVC

    own = samples.of(route)
    rows = _rows(samples, route, own) if own.any() else np.zeros(0, np.int64)
    if own[rows].all():  # nothing to tell it from, or nothing of its own
        return np.zeros(samples.features.shape[1], np.float32), 1.0 if own.any() else -1.0
    # A smaller tolerance changes no figure by more than chance does, and takes a quarter longer.
    svc = LinearSVC(C=1.0, intercept_scaling=3.0, tol=0.1, random_state=0)
    svc.fit(samples.features[rows], own[rows])
    return rounded(svc.coef_[0]), float(svc.intercept_[0])


def _rows(samples: Samples, route: str, own: BoolArray) -> IntArray:
    """The samples that a row is fitted on."""
    others = np.flatnonzero(~own & samples.usable(route))
    most = max(LEAST, COUNTEREXAMPLES * int(own.sum()))
    if len(others) <= most:
        return np.sort(np.concatenate([np.flatnonzero(own), others]))
    mine, width = samples.features[own], samples.features.shape[1]
    centre = np.bincount(mine.indices, mine.data, width).astype(mine.dtype)
    nearness = (samples.features @ centre)[others]
    count = most * 2 // 3
    order = np.argpartition(-nearness, count)
    nearest, rest = np.split(others[order], [count])
    chance = np.random.default_rng(crc32(route.encode()))
    random = chance.choice(rest, most - len(nearest), replace=False)
    told = np.flatnonzero(samples.usable(route) & ~samples.general)
    return np.unique(np.concatenate([np.flatnonzero(own), nearest, random, told]))


def rounded(weights: FloatArray) -> FloatArray:
    """Weights as multiples of a 127th of the largest, float32."""
    # A scale of few binary digits: multiples of it are exact, and dividing the largest by 127 gives it back.
    digits, exponent = np.frexp(np.abs(weights).max(initial=0) / 127)
    scale = np.ldexp(np.rint(digits * 2**12), exponent - 12).astype(np.float32)
    return (
        (np.rint(weights / scale).astype(np.float32) * scale) if scale else np.zeros_like(weights, np.float32)
    )


def folds(owners: Sequence[str], count: int) -> IntArray:
    """The fold of each sample (n): every route's samples are dealt out in turn."""
    dealt: dict[str, int] = {}
    result = np.zeros(len(owners), np.int32)
    for place, owner in enumerate(owners):
        dealt[owner] = dealt.get(owner, crc32(owner.encode()) % count) + 1
        result[place] = dealt[owner] % count
    return result
