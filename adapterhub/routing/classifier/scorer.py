"""The arithmetic of one decision: a request to one score per route. numpy alone.

Indices are `np.intp` and are followed by `take`, which of all ways in numpy begins the soonest.

A route's score is the decision of its linear row, plus `NEAREST_WEIGHT` times the cosine to the nearest example of the
`LIKELY` routes with the highest decisions (a request unlike every example is doubtful, whatever the rows say), less
`NONE_WEIGHT` times the decision of the row for requests that are for no adapter. An encoder, where there is one, adds a
weighted score of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adapterhub.routing.classifier.features import FloatArray, IntArray, Vector, Weighting, buckets
from adapterhub.routing.classifier.neighbours import Nearest, Neighbours
from adapterhub.routing.classifier.rows import Rows

if TYPE_CHECKING:
    from adapterhub.routing.classifier.encoding import EncoderHead

NEAREST_WEIGHT = 0.75
NONE_WEIGHT = 0.3
LIKELY = 2


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
        rows: The rows.
        neighbours: The examples.
    """

    columns: IntArray
    rows: Rows
    neighbours: Neighbours

    @property
    def size(self) -> int:
        """How many rows it has."""
        return len(self.rows.biases)

    def spread(self, vector: Vector) -> Vector:
        """A text by columns; that of n-grams that no sample has is -1."""
        return Vector(self.columns.take(vector.buckets), vector.values)

    def decisions(self, spread: Vector) -> FloatArray:
        """The rows' decisions on a text (rows)."""
        return self.rows.decisions(*spread)

    def nearest(self, rows: Iterable[int], spread: Vector) -> Nearest:
        """The nearest example of some rows."""
        request = np.zeros(len(self.rows.steps), np.float32)
        request[spread.buckets] = spread.values
        return self.neighbours.nearest(rows, request)


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
        return cls(weighting, (part,), np.arange(part.size - 1))

    def with_rows(self, part: Part, place: int, replaced: Sequence[int]) -> Scorer:
        """A route more, at a place among the routes, and other rows in place of some routes' own.

        Args:
            part: Holds all rows that were added before, then the new route's, then the others.
            place: The new route's place.
            replaced: The places of the routes, after the new one is in, that have another row now.
        """
        total = self.parts[0].size + part.size
        order = np.insert(self.order, place, total - len(replaced) - 1)
        order[list(replaced)] = np.arange(total - len(replaced), total)
        return replace(self, parts=(self.parts[0], part), order=order)

    def without(self, place: int) -> Scorer:
        """A route less: its row is no longer asked."""
        return replace(self, order=np.delete(self.order, place))

    def score_text(self, text: str) -> Scored:
        """Scores one text by its n-grams."""
        vector = self.weighting.vector(buckets(text))
        spreads = [part.spread(vector) for part in self.parts]
        found = [part.decisions(spread) for part, spread in zip(self.parts, spreads, strict=True)]
        rows = np.concatenate(found) if len(found) > 1 else found[0]
        decisions, none = rows[self.order], float(found[0][-1])
        nearest = self._nearest(spreads, decisions)
        return Scored(decisions + (NEAREST_WEIGHT * nearest.cosine - NONE_WEIGHT * none), none, nearest)

    def _nearest(self, spreads: Sequence[Vector], decisions: FloatArray) -> Nearest:
        """The nearest example of the likely routes, given a text by the columns of each part."""
        first = self.parts[0].size
        rows = sorted([int(self.order[place]) for place in _highest(decisions, LIKELY)])
        nearest = self.parts[0].nearest([row for row in rows if row < first], spreads[0])
        later = [row - first for row in rows if row >= first]
        return (
            max(nearest, self.parts[1].nearest(later, spreads[1]), key=lambda one: one.cosine)
            if later
            else nearest
        )

    def score(self, pieces: Sequence[str], script: str) -> tuple[Scored, str]:
        """The best scored piece of a request, and that piece."""
        scored = [self.score_text(piece) for piece in pieces]
        if self.encoder and self.encoder.weight(script):
            added = self.encoder.scores(pieces) * self.encoder.weight(script)
            scored = [one._replace(scores=one.scores + more) for one, more in zip(scored, added, strict=True)]
        best = max(range(len(pieces)), key=lambda place: scored[place].top) if len(pieces) > 1 else 0
        return scored[best], pieces[best]

    def contributions(self, vector: Vector, place: int) -> FloatArray:
        """What each n-gram of a text adds to a route's decision (n), 0 for those it does not know."""
        row = int(self.order[place])
        part = self.parts[row >= self.parts[0].size]
        row -= 0 if part is self.parts[0] else self.parts[0].size
        return part.rows.weights(part.columns[vector.buckets], row) * vector.values


def _highest(values: FloatArray, count: int) -> list[int]:
    """The places of the highest values, which for a few of them are sooner found one by one than by a partition."""
    left, found = values.copy(), []
    for _ in range(min(count, len(values))):
        found.append(int(left.argmax()))
        left[found[-1]] = -np.inf
    return found
