"""The nearest example of a request, by cosine similarity."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adapterhub.routing.classifier.arrays import FloatArray, IntArray
from adapterhub.routing.classifier.features import VECTOR_NORM

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class Neighbour(NamedTuple):
    """The example with the highest cosine similarity to a request; None if no example shares an n-gram with it."""

    example: str | None
    cosine: float


class NearestNeighbours:
    """The examples of each class, searched by brute force.

    Args:
        features: One row per example (n, columns), ordered by class; no row is empty.
        texts: The examples (n).
        counts: The number of examples of each class (classes).
    """

    def __init__(self, features: csr_array, texts: Sequence[str], counts: Sequence[int]) -> None:
        self._texts = texts
        ends = np.cumsum([0, *counts]).tolist()
        self._classes = [_ClassExamples.of(features, first, last) for first, last in pairwise(ends)]

    def nearest(self, classes: Iterable[int], request: FloatArray) -> Neighbour:
        """The example of some classes with the highest cosine similarity to a request.

        Args:
            classes: The indices of the classes to search.
            request: The request's dense vector (columns).
        """
        index, highest = -1, 0.0
        for one in classes:
            first, starts, columns, values = self._classes[one]
            if len(starts):
                products = np.add.reduceat(request.take(columns) * values, starts)
                best = int(products.argmax())
                product = float(products[best])
                if product > highest:
                    index, highest = first + best, product
        return Neighbour(self._texts[index] if highest else None, highest / VECTOR_NORM**2)


class _ClassExamples(NamedTuple):
    """One class's examples in CSR form: the first one's index, where each starts (n), columns and values (k)."""

    first: int
    starts: IntArray
    columns: IntArray
    values: FloatArray

    @classmethod
    def of(cls, features: csr_array, first: int, last: int) -> _ClassExamples:
        begin, end = features.indptr[first], features.indptr[last]
        starts = features.indptr[first:last] - begin
        columns = features.indices[begin:end].astype(np.intp)
        return cls(first, starts.astype(np.intp), columns, features.data[begin:end])
