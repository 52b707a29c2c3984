"""The arithmetic of one decision: a request to one score per route. numpy alone.

A route's score is the decision of its linear row, plus `NEAREST_WEIGHT` times the cosine to the nearest example of any
route (a request unlike every example is doubtful, whatever the rows say), less `NONE_WEIGHT` times the decision of the
row for requests that are for no adapter. An encoder, where there is one, adds a weighted score of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adapterhub.routing.features import WORD_WEIGHT, FloatArray, IntArray, Vector, Weighting, buckets
from adapterhub.routing.neighbours import Nearest, Neighbours

if TYPE_CHECKING:
    from adapterhub.routing.encoding import EncoderHead

NEAREST_WEIGHT = 0.75
NONE_WEIGHT = 0.3
LENGTH = (1 + WORD_WEIGHT**2) ** 0.5
"""The length of a vector with both blocks."""


class Scored(NamedTuple):
    """What a text looks like to every route.

    Attributes:
        scores: One per route (routes).
        none: The decision of the row for requests that are for no adapter.
        nearest: The nearest example.
    """

    scores: FloatArray
    none: float
    nearest: Nearest

    @property
    def top(self) -> float:
        """The highest score of a route."""
        return float(self.scores.max())


@dataclass(frozen=True)
class Part:
    """Rows that were fitted together, with the examples of their routes.

    Attributes:
        columns: Bucket -> column, -1 for n-grams that no sample has (buckets).
        weights: (columns, rows), float32.
        biases: (rows), float32.
        neighbours: The examples.
    """

    columns: IntArray
    weights: FloatArray
    biases: FloatArray
    neighbours: Neighbours

    def look(self, vector: Vector) -> tuple[FloatArray, Nearest]:
        """The rows' decisions (rows) on a text, and its nearest example."""
        places = self.columns[vector.buckets]
        known = places >= 0
        places, values = places[known], vector.values[known]
        return values @ self.weights[places] + self.biases, self.neighbours.nearest(places, values, LENGTH)


@dataclass(frozen=True)
class Scorer:
    """All rows. A change makes another scorer, which shares with this one whatever stays.

    Attributes:
        weighting: Weights of the n-grams.
        parts: The rows of the last whole fit, the last of them for no adapter; then those that were added since.
        order: Where each route's decision lies among all rows (routes).
        encoder: What adds its own scores.
    """

    weighting: Weighting
    parts: tuple[Part, ...]
    order: IntArray
    encoder: EncoderHead | None = None

    @classmethod
    def of(cls, weighting: Weighting, part: Part) -> Scorer:
        """A scorer of rows that were all fitted together."""
        return cls(weighting, (part,), np.arange(len(part.biases) - 1))

    def with_row(self, part: Part, place: int) -> Scorer:
        """A route more, at a place among the routes: `part` holds its row after those that were added before."""
        row = sum(len(one.biases) for one in (self.parts[0], part)) - 1
        return replace(self, parts=(self.parts[0], part), order=np.insert(self.order, place, row))

    def without(self, route: str, place: int) -> Scorer:
        """A route less."""
        parts = tuple(replace(part, neighbours=part.neighbours.without(route)) for part in self.parts)
        return replace(self, parts=parts, order=np.delete(self.order, place))

    def score_text(self, text: str) -> Scored:
        """Scores one text by its n-grams."""
        vector = self.weighting.vector(buckets(text))
        looks = [part.look(vector) for part in self.parts]
        rows = np.concatenate([decisions for decisions, _ in looks])
        nearest = max((found for _, found in looks), key=lambda one: one.cosine)
        none = float(looks[0][0][-1])
        return Scored(
            rows[self.order] + (NEAREST_WEIGHT * nearest.cosine - NONE_WEIGHT * none), none, nearest
        )

    def score(self, pieces: Sequence[str], script: str) -> tuple[Scored, str]:
        """The best scored piece of a request, and that piece."""
        scored = [self.score_text(piece) for piece in pieces]
        if self.encoder and self.encoder.weight(script):
            added = self.encoder.scores(pieces) * self.encoder.weight(script)
            scored = [one._replace(scores=one.scores + more) for one, more in zip(scored, added, strict=True)]
        best = max(range(len(pieces)), key=lambda place: scored[place].top)
        return scored[best], pieces[best]

    def contributions(self, vector: Vector, place: int) -> FloatArray:
        """What each n-gram of a text adds to a route's decision (n), 0 for those it does not know."""
        row = int(self.order[place])
        part = self.parts[row >= len(self.parts[0].biases)]
        row -= 0 if part is self.parts[0] else len(self.parts[0].biases)
        columns = part.columns[vector.buckets]
        return np.where(columns >= 0, part.weights[columns, row], 0) * vector.values
