"""How near a request is to the nearest example of the routes that it may be for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adapterhub.routing.classifier.features import LENGTH, FloatArray, IntArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class Nearest(NamedTuple):
    """The example with the highest cosine to a request; None if no example has anything of it."""

    example: str | None
    cosine: float


class Neighbours:
    """The examples of each row.

    Args:
        features: One line per example (n, columns), one row's after another's; none is empty.
        texts: The examples (n).
        counts: How many examples each row has (rows).
    """

    def __init__(self, features: csr_array, texts: Sequence[str], counts: Sequence[int]) -> None:
        self._texts = texts
        ends = np.cumsum([0, *counts]).tolist()
        self._rows = [_Row.of(features, first, last) for first, last in pairwise(ends)]

    def nearest(self, rows: Iterable[int], request: FloatArray) -> Nearest:
        """The example of some rows with the highest cosine to a request.

        Args:
            rows: The rows to look among.
            request: The request's vector (columns).
        """
        place, highest = -1, 0.0
        for row in rows:
            first, starts, columns, values = self._rows[row]
            if len(starts):
                products = np.add.reduceat(request.take(columns) * values, starts)
                best = int(products.argmax())
                product = float(products[best])
                if product > highest:
                    place, highest = first + best, product
        return Nearest(self._texts[place] if highest else None, highest / LENGTH**2)


class _Row(NamedTuple):
    """One row's examples: the first one's place, where each begins (n), and their columns and values (k)."""

    first: int
    starts: IntArray
    columns: IntArray
    values: FloatArray

    @classmethod
    def of(cls, features: csr_array, first: int, last: int) -> _Row:
        begin, end = features.indptr[first], features.indptr[last]
        starts = features.indptr[first:last] - begin
        columns = features.indices[begin:end].astype(np.intp)
        return cls(first, starts.astype(np.intp), columns, features.data[begin:end])
