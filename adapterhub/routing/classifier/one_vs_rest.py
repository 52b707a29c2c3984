"""Fitting the linear head: scikit-learn's `LinearSVC`, one against the rest for each route.

From a few thousand samples on, a classifier is fitted against the negatives most similar to its own samples and some
random ones, so that the time grows linearly with the number of routes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from adapterhub.routing.classifier.arrays import BoolArray, FloatArray, IntArray
from adapterhub.routing.classifier.linear_head import LinearHead, quantize

if TYPE_CHECKING:
    from scipy.sparse import csr_array


NEGATIVES_PER_POSITIVE = 20
"""Negatives that a classifier is fitted on for each of its own samples: two thirds the most similar, a third random."""
MIN_NEGATIVES = 200
_BLOCK_SIZE = 32
"""Classes that are fitted at a time: one pass over the features, and one write of the columns, serves all of them."""


@dataclass(frozen=True)
class Samples:
    """Training data of the linear head.

    Attributes:
        features: One row per sample (n, columns).
        labels: The route of each sample (n), or `OUT_OF_SCOPE`.
        negative_for: The only route that a sample is a negative of (n); "" if it is one of all other routes.
    """

    features: csr_array
    labels: np.ndarray
    negative_for: np.ndarray

    @cached_property
    def shared(self) -> BoolArray:
        """Which samples every classifier may be fitted on (n)."""
        return np.asarray(self.negative_for == "")

    @cached_property
    def _codes(self) -> tuple[dict[str, int], IntArray]:
        names, codes = np.unique(self.labels.astype(str), return_inverse=True)
        return {name: code for code, name in enumerate(names.tolist())}, codes

    def positives(self, label: str) -> BoolArray:
        """Which samples have a label (n)."""
        names, codes = self._codes
        return np.asarray(codes == names.get(label, -1)) & self.shared

    def usable(self, label: str) -> BoolArray:
        """Which samples a label's classifier may be fitted on (n)."""
        return self.shared if self.shared.all() else self.shared | (self.negative_for == label)

    def similarity(self, labels: Sequence[str]) -> FloatArray:
        """Dot products of each label's summed positives with every sample (labels, n)."""
        features = self.features
        sums = np.zeros((features.shape[1], len(labels)), features.dtype)
        for column, label in enumerate(labels):
            own = np.flatnonzero(self.positives(label))
            starts, ends = features.indptr[own], features.indptr[own + 1]
            for first, last in zip(starts.tolist(), ends.tolist(), strict=True):
                sums[features.indices[first:last], column] += features.data[first:last]
        return np.ascontiguousarray((features @ sums).T)

    def drop(self, mask: BoolArray) -> Samples:
        """All samples but those of a mask (n)."""
        return Samples(self.features[~mask], self.labels[~mask], self.negative_for[~mask])

    def concatenate(self, other: Samples) -> Samples:
        """These samples, then others, whose features begin with the same columns."""
        from scipy.sparse import csr_array, vstack

        own, width = self.features, other.features.shape[1]
        widened = csr_array((own.data, own.indices, own.indptr), shape=(own.shape[0], width))
        return Samples(
            vstack([widened, other.features], format="csr"),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.negative_for, other.negative_for]),
        )


def fit_head(samples: Samples, labels: Iterable[str]) -> LinearHead:
    """Fits one classifier for each label."""
    from sklearn import config_context

    names = list(labels)
    head = LinearHead.zeros(samples.features.shape[1], len(names))
    with config_context(assume_finite=True, skip_parameter_validation=True):
        for start in range(0, len(names), _BLOCK_SIZE):
            block = slice(start, start + _BLOCK_SIZE)
            similarities = samples.similarity(names[block])
            fitted = [_fit_one(samples, *pair) for pair in zip(names[block], similarities, strict=True)]
            head.steps[:-1, block] = np.transpose([steps for steps, _, _ in fitted])
            head.scales[block] = [scale for _, scale, _ in fitted]
            head.biases[block] = [bias for _, _, bias in fitted]
    return head


def _fit_one(samples: Samples, label: str, similarity: FloatArray) -> tuple[IntArray, float, float]:
    """Steps (columns), scale and bias of one classifier, given every sample's similarity to its positives (n)."""
    from sklearn.svm import LinearSVC

    own = samples.positives(label)
    chosen = _training_rows(samples, label, own, similarity) if own.any() else np.zeros(0, np.int64)
    if own[chosen].all():  # no positives, or no negatives
        return *quantize(np.zeros(samples.features.shape[1])), 1.0 if own.any() else -1.0
    # Measured: a smaller tolerance takes longer and changes accuracy by less than its noise. A larger intercept scaling
    # takes liblinear more passes, since the bias couples all samples; a smaller one costs accuracy.
    svc = LinearSVC(C=1.0, intercept_scaling=2.0, tol=0.2, random_state=0)
    svc.fit(samples.features[chosen], own[chosen])
    return *quantize(svc.coef_[0]), float(svc.intercept_[0])


def _training_rows(samples: Samples, label: str, own: BoolArray, similarity: FloatArray) -> IntArray:
    """The indices of the samples that a classifier is fitted on."""
    others = np.flatnonzero(~own & samples.usable(label))
    limit = max(MIN_NEGATIVES, NEGATIVES_PER_POSITIVE * int(own.sum()))
    if len(others) <= limit:
        return np.sort(np.concatenate([np.flatnonzero(own), others]))
    count = limit * 2 // 3
    order = np.argpartition(-similarity[others], count)
    hard, rest = np.split(others[order], [count])
    rng = np.random.default_rng(crc32(label.encode()))
    random = rng.choice(rest, limit - len(hard), replace=False)
    explicit = np.flatnonzero(samples.usable(label) & ~samples.shared)
    return np.unique(np.concatenate([np.flatnonzero(own), hard, random, explicit]))


def assign_folds(labels: Sequence[str], count: int) -> IntArray:
    """The fold of each sample (n), stratified: the samples of a label take the folds in turn.

    scikit-learn's `StratifiedKFold` was measured in its place. It refuses labels that all have fewer samples than
    there are folds, as routes of three examples do, and its folds calibrate no better: the shipped adapters then send
    87 % of CLINC150's requests to the base, with these folds 93 %.
    """
    last: dict[str, int] = {}
    folds = np.zeros(len(labels), np.int32)
    for index, label in enumerate(labels):
        last[label] = last.get(label, crc32(label.encode()) % count) + 1
        folds[index] = last[label] % count
    return folds
