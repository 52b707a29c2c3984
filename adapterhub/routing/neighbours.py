"""How near a request is to the nearest example, through an inverted index: column -> examples that have it.

Columns that many examples have lie as dense rows beside the index: adding whole rows is quicker than going through long
lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adapterhub.routing.features import FloatArray, IntArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array

COMMON = 1 / 16
"""Share of the examples that have a column from which on it lies in a dense row."""


class Nearest(NamedTuple):
    """The example with the highest cosine to a request; None if no example has anything of it."""

    example: str | None
    cosine: float


class Neighbours:
    """Examples by column.

    Args:
        features: One row per example (n, columns).
        texts: The examples (n).
        owners: The route of each (n).
    """

    def __init__(self, features: csr_array, texts: Sequence[str], owners: np.ndarray) -> None:
        by_column = features.tocsc()
        self._texts, self._owners = texts, owners
        self._gone = np.zeros(0, np.intp)
        self._starts: IntArray = by_column.indptr
        self._lengths = np.diff(self._starts)
        self._examples: IntArray = by_column.indices.astype(np.intp)
        self._values: FloatArray = by_column.data
        common = np.flatnonzero(self._lengths > len(texts) * COMMON)
        self._row = np.full(features.shape[1], -1, np.int32)
        self._row[common] = np.arange(len(common))
        self._dense = np.ascontiguousarray(by_column[:, common].toarray().T)

    def without(self, route: str) -> Neighbours:
        """The same index, in which the examples of a route are no longer found."""
        fewer = copy(self)
        fewer._gone = np.union1d(self._gone, np.flatnonzero(self._owners == route))
        return fewer

    def nearest(self, columns: IntArray, values: FloatArray, norm: float) -> Nearest:
        """The nearest example of a request.

        Args:
            columns: The known columns of the request (k).
            values: Its values there (k).
            norm: The length of one whole vector; vectors of requests and examples have the same.
        """
        if not len(columns) or not len(self._texts):
            return Nearest(None, 0.0)
        rows = self._row[columns]
        common = rows >= 0
        products = values[common] @ self._dense[rows[common]]
        products = products + self._listed(columns[~common], values[~common])
        products[self._gone] = 0
        best = int(products.argmax())
        cosine = float(products[best]) / norm**2
        return Nearest(self._texts[best], cosine) if cosine > 0 else Nearest(None, 0.0)

    def _listed(self, columns: IntArray, values: FloatArray) -> FloatArray:
        """The products with every example (n) of the columns that lie in lists."""
        if not len(columns):
            return np.zeros(len(self._texts), np.float32)
        starts, lengths = self._starts[columns], self._lengths[columns]
        ends = lengths.cumsum()
        places = np.arange(ends[-1]) + (starts - ends + lengths).repeat(lengths)
        products = self._values[places] * values.repeat(lengths)
        return np.bincount(self._examples[places], products, len(self._texts)).astype(np.float32)
