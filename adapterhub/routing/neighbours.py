"""How near a request is to the nearest example of the routes that it may be for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adapterhub.routing.features import FloatArray, IntArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array


class Nearest(NamedTuple):
    """The example with the highest cosine to a request; None if no example has anything of it."""

    example: str | None
    cosine: float


class Neighbours:
    """The examples of each row, one row's after another's.

    Args:
        features: One line per example (n, columns); none is empty.
        texts: The examples (n).
        counts: How many examples each row has (rows).
    """

    def __init__(self, features: csr_array, texts: Sequence[str], counts: Sequence[int]) -> None:
        self._texts = texts
        self._ends: IntArray = np.cumsum([0, *counts])
        self._starts: IntArray = features.indptr
        self._columns: IntArray = features.indices
        self._values: FloatArray = features.data

    def nearest(self, rows: Sequence[int], request: FloatArray) -> Nearest:
        """The example of some rows whose product with a request is highest.

        Args:
            rows: The rows to look among.
            request: The request's vector (columns).
        """
        spans = [
            (self._ends[row], self._ends[row + 1]) for row in rows if self._ends[row] < self._ends[row + 1]
        ]
        if not spans:
            return Nearest(None, 0.0)
        places = np.concatenate([np.arange(*span) for span in spans])
        parts = [slice(self._starts[first], self._starts[last]) for first, last in spans]
        columns = np.concatenate([self._columns[part] for part in parts])
        values = np.concatenate([self._values[part] for part in parts])
        lengths = self._starts[places + 1] - self._starts[places]
        products = np.add.reduceat(request[columns] * values, lengths.cumsum() - lengths)
        best = int(products.argmax())
        highest = float(products[best])
        return Nearest(self._texts[places[best]], highest) if highest > 0 else Nearest(None, 0.0)
