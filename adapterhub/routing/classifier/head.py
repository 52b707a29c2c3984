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

from adapterhub.routing.classifier.features import BoolArray, FloatArray, IntArray
from adapterhub.routing.classifier.rows import Rows, in_steps

if TYPE_CHECKING:
    from scipy.sparse import csr_array


NONE = "~none"
"""The row of requests that are for no adapter; no adapter can be called that."""
COUNTEREXAMPLES = 20
"""Others' samples that a row is fitted against, for each of its own: two thirds the nearest, the rest random."""
LEAST = 200
_BLOCK = 32
"""Rows that are fitted at a time: the features are gone through once for all of them, and so are the columns that their
weights become.
"""


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

    def nearness(self, routes: Sequence[str]) -> FloatArray:
        """How near some routes are to each sample: products of the sums of their own samples with it (routes, n)."""
        features = self.features
        sums = np.zeros((features.shape[1], len(routes)), features.dtype)
        for route, name in enumerate(routes):
            own = np.flatnonzero(self.of(name))
            starts, ends = features.indptr[own], features.indptr[own + 1]
            for first, last in zip(starts.tolist(), ends.tolist(), strict=True):
                sums[features.indices[first:last], route] += features.data[first:last]
        return np.ascontiguousarray((features @ sums).T)

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


def fit_rows(samples: Samples, routes: Iterable[str]) -> Rows:
    """Fits the row of each route."""
    from sklearn import config_context

    names = list(routes)
    rows = Rows.zeros(samples.features.shape[1], len(names))
    with config_context(assume_finite=True, skip_parameter_validation=True):
        for start in range(0, len(names), _BLOCK):
            block = slice(start, start + _BLOCK)
            near = samples.nearness(names[block])
            fitted = [_fit_row(samples, *one) for one in zip(names[block], near, strict=True)]
            rows.steps[:-1, block] = np.transpose([steps for steps, _, _ in fitted])
            rows.scales[block] = [scale for _, scale, _ in fitted]
            rows.biases[block] = [bias for _, _, bias in fitted]
    return rows


def _fit_row(samples: Samples, route: str, nearness: FloatArray) -> tuple[IntArray, float, float]:
    """A row's steps (columns), scale and bias, given how near each sample is to the route (n)."""
    from sklearn.svm import LinearSVC

    own = samples.of(route)
    rows = _rows(samples, route, own, nearness) if own.any() else np.zeros(0, np.int64)
    if own[rows].all():  # nothing to tell it from, or nothing of its own
        return *in_steps(np.zeros(samples.features.shape[1])), 1.0 if own.any() else -1.0
    # A smaller tolerance changes no figure by more than chance does, and takes longer. A freer bias takes
    # liblinear more passes, since it ties all samples together; one that is held closer tells routes apart less well.
    svc = LinearSVC(C=1.0, intercept_scaling=2.0, tol=0.2, random_state=0)
    svc.fit(samples.features[rows], own[rows])
    return *in_steps(svc.coef_[0]), float(svc.intercept_[0])


def _rows(samples: Samples, route: str, own: BoolArray, nearness: FloatArray) -> IntArray:
    """The samples that a row is fitted on."""
    others = np.flatnonzero(~own & samples.usable(route))
    most = max(LEAST, COUNTEREXAMPLES * int(own.sum()))
    if len(others) <= most:
        return np.sort(np.concatenate([np.flatnonzero(own), others]))
    count = most * 2 // 3
    order = np.argpartition(-nearness[others], count)
    nearest, rest = np.split(others[order], [count])
    chance = np.random.default_rng(crc32(route.encode()))
    random = chance.choice(rest, most - len(nearest), replace=False)
    told = np.flatnonzero(samples.usable(route) & ~samples.general)
    return np.unique(np.concatenate([np.flatnonzero(own), nearest, random, told]))


def folds(owners: Sequence[str], count: int) -> IntArray:
    """The fold of each sample (n): every route's samples are dealt out in turn."""
    dealt: dict[str, int] = {}
    result = np.zeros(len(owners), np.int32)
    for place, owner in enumerate(owners):
        dealt[owner] = dealt.get(owner, crc32(owner.encode()) % count) + 1
        result[place] = dealt[owner] % count
    return result
