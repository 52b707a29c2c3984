"""The arithmetic of one decision: a request to one score per route, in numpy alone.

Indices are `np.intp` and are looked up with `take`, numpy's indexing with the least overhead per call.

A route's score is the decision value of its linear classifier, plus `NEIGHBOUR_WEIGHT` times the cosine similarity to
the nearest example of the `TOP_K_ROUTES` routes with the highest decision values (a request unlike every example is
doubtful, whatever the classifier says), less `OUT_OF_SCOPE_WEIGHT` times the decision value of the out-of-scope class.
An encoder, if there is one, adds a weighted score.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from adapterhub.routing.classifier.arrays import FloatArray, IntArray
from adapterhub.routing.classifier.features import SparseVector, TfidfWeighting, hash_ngrams
from adapterhub.routing.classifier.linear_head import LinearHead
from adapterhub.routing.classifier.neighbours import NearestNeighbours, Neighbour

if TYPE_CHECKING:
    from adapterhub.routing.classifier.encoding import EncoderHead

NEIGHBOUR_WEIGHT = 0.75
OUT_OF_SCOPE_WEIGHT = 0.3
TOP_K_ROUTES = 2


class Scores(NamedTuple):
    """The scores of one text.

    Attributes:
        values: One per route (routes).
        out_of_scope: The decision value of the out-of-scope class.
        neighbour: The nearest example.
    """

    values: FloatArray
    out_of_scope: float
    neighbour: Neighbour

    @property
    def highest(self) -> float:
        """The highest score of a route."""
        return float(self.values.max())


@dataclass(frozen=True)
class FittedHead:
    """A linear head with its columns and the examples of its classes.

    Attributes:
        columns: Bucket -> column, -1 for n-grams without training data (buckets).
        linear: The linear classifiers.
        neighbours: The examples.
    """

    columns: IntArray
    linear: LinearHead
    neighbours: NearestNeighbours

    @property
    def size(self) -> int:
        """The number of classes."""
        return len(self.linear.biases)

    def to_columns(self, vector: SparseVector) -> SparseVector:
        """A vector by bucket as one by column; -1 for n-grams without training data."""
        return SparseVector(self.columns.take(vector.indices), vector.values)

    def decision_function(self, vector: SparseVector) -> FloatArray:
        """The decision value of each class (classes), given a vector by column."""
        return self.linear.decision_function(*vector)

    def nearest(self, classes: Iterable[int], vector: SparseVector) -> Neighbour:
        """The nearest example of some classes, given a vector by column."""
        request = np.zeros(len(self.linear.steps), np.float32)
        request[vector.indices] = vector.values
        return self.neighbours.nearest(classes, request)


@dataclass(frozen=True)
class Scorer:
    """Text to scores.

    Attributes:
        weighting: TF-IDF weights of the n-grams.
        heads: The head of the last full fit, whose last class is out of scope; then, after changes, that of the classes
            that were fitted since.
        order: For each route, the index of its class in the concatenated heads (routes).
        encoder: What an encoder adds.
    """

    weighting: TfidfWeighting
    heads: tuple[FittedHead, ...]
    order: IntArray
    encoder: EncoderHead | None = None

    @classmethod
    def of(cls, weighting: TfidfWeighting, head: FittedHead) -> Scorer:
        """The scorer of one full fit."""
        return cls(weighting, (head,), np.arange(head.size - 1))

    def with_classes(self, head: FittedHead, index: int, replaced: Sequence[int]) -> Scorer:
        """Adds a route, and replaces the classifiers of some others.

        Args:
            head: The classes that were fitted since the full fit before this change, then the new route's, then those
                of the replaced routes.
            index: The new route's index.
            replaced: The indices, with the new route in, of the routes whose classifiers are replaced.
        """
        total = self.heads[0].size + head.size
        order = np.insert(self.order, index, total - len(replaced) - 1)
        order[list(replaced)] = np.arange(total - len(replaced), total)
        return replace(self, heads=(self.heads[0], head), order=order)

    def without(self, index: int) -> Scorer:
        """Removes a route; its class stays in the head, unused."""
        return replace(self, order=np.delete(self.order, index))

    def score_text(self, text: str) -> Scores:
        """Scores one text by its n-grams."""
        vector = self.weighting.vector(hash_ngrams(text))
        by_column = [head.to_columns(vector) for head in self.heads]
        found = [head.decision_function(own) for head, own in zip(self.heads, by_column, strict=True)]
        classes = np.concatenate(found) if len(found) > 1 else found[0]
        decisions, out_of_scope = classes[self.order], float(found[0][-1])
        neighbour = self._nearest(by_column, decisions)
        values = decisions + (NEIGHBOUR_WEIGHT * neighbour.cosine - OUT_OF_SCOPE_WEIGHT * out_of_scope)
        return Scores(values, out_of_scope, neighbour)

    def _nearest(self, by_column: Sequence[SparseVector], decisions: FloatArray) -> Neighbour:
        """The nearest example of the top routes, given a text's vector by the columns of each head."""
        first = self.heads[0].size
        classes = sorted([int(self.order[index]) for index in _top_k(decisions, TOP_K_ROUTES)])
        neighbour = self.heads[0].nearest([one for one in classes if one < first], by_column[0])
        later = [one - first for one in classes if one >= first]
        if not later:
            return neighbour
        return max(neighbour, self.heads[1].nearest(later, by_column[1]), key=lambda one: one.cosine)

    def score(self, segments: Sequence[str], script: str) -> tuple[Scores, str]:
        """The scores of the segment with the highest score, and that segment."""
        scored = [self.score_text(segment) for segment in segments]
        if self.encoder and self.encoder.weight(script):
            added = self.encoder.scores(segments) * self.encoder.weight(script)
            scored = [one._replace(values=one.values + more) for one, more in zip(scored, added, strict=True)]
        best = max(range(len(segments)), key=lambda index: scored[index].highest) if len(segments) > 1 else 0
        return scored[best], segments[best]

    def contributions(self, vector: SparseVector, index: int) -> FloatArray:
        """What each n-gram of a text adds to a route's decision value (n); 0 for those without training data."""
        own = int(self.order[index])
        head = self.heads[own >= self.heads[0].size]
        own -= 0 if head is self.heads[0] else self.heads[0].size
        return head.linear.coefficients(head.columns[vector.indices], own) * vector.values


def _top_k(values: FloatArray, k: int) -> list[int]:
    """The indices of the k highest values; for a small k, faster than a partition."""
    left, found = values.copy(), []
    for _ in range(min(k, len(values))):
        found.append(int(left.argmax()))
        left[found[-1]] = -np.inf
    return found
