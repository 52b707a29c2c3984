"""Routes to samples, samples to rows, and what rows that never saw an example make of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np

from adapterhub.routing.classifier.calibration import HeldOut
from adapterhub.routing.classifier.encoding import SURE, WEIGHTS, Encoder, EncoderHead, encoded, fit_ridge
from adapterhub.routing.classifier.features import (
    BUCKETS,
    LENGTH,
    BoolArray,
    FloatArray,
    IntArray,
    Vector,
    Weighting,
    buckets,
    matrix,
    normalised,
)
from adapterhub.routing.classifier.head import NONE, Samples, fit_rows, folds
from adapterhub.routing.classifier.neighbours import Neighbours
from adapterhub.routing.classifier.scorer import Part, Scorer
from adapterhub.routing.classifier.text import read
from adapterhub.routing.routes import Route

FEW_EXAMPLES = 400
"""Up to so many examples a tenth is held out at a time, above it a fifth."""
ENOUGH_HELD_OUT = 1_500
"""Held-out examples after which no further part is held out."""
RESEMBLING = 0.4
"""Cosine to a route's sample from which on a request of the shipped list is left out."""
_NO_COLUMNS, _NO_BUCKETS = np.full(2 * BUCKETS, -1, np.intp), np.zeros(0, np.intp)


class Sample(NamedTuple):
    """A text to learn from: its route, or the one route that it is a counterexample of.

    Attributes:
        text: The text.
        owner: Its route, or `NONE`.
        against: The one route that it is a counterexample of, or "".
        is_request: Whether it stands for requests, and so is held out in its turn.
    """

    text: str
    owner: str
    against: str = ""
    is_request: bool = False


def samples_of(routes: Iterable[Route], negatives: Iterable[str] = ()) -> list[Sample]:
    """Every text of the routes, and requests for no adapter less those that are an adapter's own."""
    found: list[Sample] = []
    for route in routes:
        found += [Sample(text, route.name, is_request=True) for text in route.examples]
        found += [Sample(text, route.name) for text in route.about]
        found += [Sample(text, NONE, route.name) for text in route.negatives]
    claimed = {normalised(sample.text) for sample in found if not sample.against}
    others = sorted({text for text in negatives if normalised(text) not in claimed})
    return found + [Sample(text, NONE, is_request=True) for text in others]


class Unseen(NamedTuple):
    """An example as rows see it that were fitted without it.

    Attributes:
        place: Its place among the samples.
        script: The script of most of its letters.
        scores: One per route (routes).
    """

    place: int
    script: str
    scores: FloatArray


@dataclass(frozen=True)
class Table:
    """Samples with their features.

    Attributes:
        texts: The samples.
        weighting: The weights of n-grams.
        columns: Bucket -> column, -1 for those that no sample has (buckets).
        samples: What rows are fitted on.
    """

    texts: tuple[Sample, ...]
    weighting: Weighting
    columns: IntArray
    samples: Samples

    @classmethod
    def make(
        cls, own: Sequence[Sample], general: Sequence[str] = (), weighting: Weighting | None = None
    ) -> Self:
        """Reads the texts; n-grams are weighed by them unless weights are given.

        Args:
            own: The samples.
            general: Requests for no adapter, of which those are learned from that resemble no route's sample.
            weighting: The weights of n-grams.
        """
        found = [buckets(text) for text in (*(sample.text for sample in own), *general)]
        weighting = weighting or Weighting.fit(found)
        vectors = [weighting.vector(one) for one in found]
        ours, theirs = vectors[: len(own)], vectors[len(own) :]
        claimed = [one for one, sample in zip(ours, own, strict=True) if sample.owner != NONE]
        kept = np.flatnonzero(~_alike(theirs, claimed)).tolist()
        texts = [*own, *(Sample(general[place], NONE, is_request=True) for place in kept)]
        return cls._of(texts, weighting, _NO_COLUMNS, [*ours, *(theirs[place] for place in kept)])

    @classmethod
    def _of(
        cls, texts: Sequence[Sample], weighting: Weighting, columns: IntArray, vectors: Sequence[Vector]
    ) -> Self:
        columns, width = _widened(columns, vectors)
        samples = Samples(
            matrix(vectors, columns, width),
            np.array([sample.owner for sample in texts], dtype=object),
            np.array([sample.against for sample in texts], dtype=object),
        )
        return cls(tuple(texts), weighting, columns, samples)

    def with_texts(self, texts: Sequence[Sample]) -> Table:
        """The table with more samples; n-grams keep their weights and columns, new ones get columns after them."""
        vectors = [self.weighting.vector(buckets(sample.text)) for sample in texts]
        added = self._of(texts, self.weighting, self.columns, vectors)
        return replace(added, texts=self.texts + added.texts, samples=self.samples.joined(added.samples))

    def without_route(self, name: str) -> Table:
        """The table without the samples of a route."""
        return self._without(
            np.array([name in (sample.owner, sample.against) for sample in self.texts], bool)
        )

    def _without(self, gone: BoolArray) -> Table:
        kept = tuple(sample for sample, out in zip(self.texts, gone.tolist(), strict=True) if not out)
        return replace(self, texts=kept, samples=self.samples.without(gone))

    def fit(self, routes: Sequence[str], held_out: BoolArray | None = None) -> Scorer:
        """Fits the routes' rows, on all samples but those held out (a mask)."""
        table = self if held_out is None else self._without(held_out)
        return Scorer.of(
            self.weighting,
            Part(self.columns, fit_rows(table.samples, [*routes, NONE]), table.neighbours(routes)),
        )

    def neighbours(self, rows: Sequence[str]) -> Neighbours:
        """The examples of each row's route: all samples that speak for it."""
        places = [np.flatnonzero(self.samples.of(route)) for route in rows]
        chosen = np.concatenate(places) if places else np.zeros(0, np.intp)
        texts = [self.texts[place].text for place in chosen]
        return Neighbours(self.samples.features[chosen], texts, [len(own) for own in places])

    def unseen(self, routes: Sequence[str]) -> Iterator[Unseen]:
        """What rows that never saw a request make of it."""
        owners = [sample.owner for sample in self.texts if sample.is_request]
        count = 10 if len(owners) < FEW_EXAMPLES else 5
        dealt = np.full(len(self.texts), -1)
        dealt[[sample.is_request for sample in self.texts]] = folds(owners, count)
        for fold in range(min(count, math.ceil(ENOUGH_HELD_OUT * count / max(1, len(owners))))):
            mask = dealt == fold
            if mask.any():
                scorer = self.fit(routes, held_out=mask)
                yield from (
                    _unseen(scorer, int(place), self.texts[place].text) for place in np.flatnonzero(mask)
                )


def held_out(table: Table, routes: Sequence[str], unseen: Iterable[Unseen]) -> list[HeldOut]:
    """The best route of each request that was not seen."""
    found = []
    for one in unseen:
        best = int(one.scores.argmax())
        sample = table.texts[one.place]
        found.append(HeldOut(sample.text, sample.owner, routes[best], float(one.scores[best]), one.script))
    return found


def fit_encoder(
    encoder: Encoder, table: Table, routes: Sequence[str], unseen: Sequence[Unseen]
) -> tuple[EncoderHead, list[Unseen]]:
    """Fits an encoder's head, weighs it for each script, and adds it to the scores of the examples not seen."""
    head, left_out = encoder_head(encoder, table, routes)
    weights = {
        script: _best_weight(table, routes, [one for one in unseen if one.script == script], left_out)
        for script in sorted({one.script for one in unseen})
    }
    added = [one._replace(scores=one.scores + weights[one.script] * left_out[one.place]) for one in unseen]
    return replace(head, weights=weights), added


def encoder_head(encoder: Encoder, table: Table, routes: Sequence[str]) -> tuple[EncoderHead, FloatArray]:
    """An encoder's head without weights, and what it makes of every sample that is left out (n, routes)."""
    vectors = encoded(encoder, [sample.text for sample in table.texts])
    targets = table.samples.owners[:, None] == np.array(routes, dtype=object)[None, :]
    coefficients, left_out = fit_ridge(vectors, targets.astype(np.float64))
    return EncoderHead(encoder, vectors, coefficients, {}), left_out


def _best_weight(
    table: Table, routes: Sequence[str], unseen: Sequence[Unseen], left_out: FloatArray
) -> float:
    """The weight with which most examples come out right; 0 unless that is more than chance (McNemar's test)."""
    unseen = [one for one in unseen if table.texts[one.place].owner != NONE]
    if not unseen:
        return 0.0
    places = [one.place for one in unseen]
    owners = table.samples.owners[places]
    linear, names = np.stack([one.scores for one in unseen]), np.array(routes, dtype=object)
    right = {w: names[(linear + w * left_out[places]).argmax(axis=1)] == owners for w in WEIGHTS}
    best = max(WEIGHTS, key=lambda weight: (right[weight].sum(), -weight))
    gained, lost = (right[best] & ~right[0.0]).sum(), (right[0.0] & ~right[best]).sum()
    return best if gained - lost > SURE * math.sqrt(gained + lost) else 0.0


def _alike(texts: Sequence[Vector], claimed: Sequence[Vector]) -> BoolArray:
    """Which texts (n) resemble one of those that speak for a route."""
    if not texts or not claimed:
        return np.zeros(len(texts), bool)
    columns, width = _widened(_NO_COLUMNS, claimed)
    products = matrix(texts, columns, width) @ matrix(claimed, columns, width).T
    return np.asarray(products.max(axis=1).toarray() > RESEMBLING * LENGTH**2).ravel()


def _unseen(scorer: Scorer, place: int, text: str) -> Unseen:
    reading = read(text)
    scored, _ = scorer.score(reading.pieces, reading.script)
    return Unseen(place, reading.script, scored.scores)


def _widened(columns: IntArray, vectors: Sequence[Vector]) -> tuple[IntArray, int]:
    """Columns for all buckets of the vectors, those that have one first; and how many there are.

    What is frequent lies together, so that a processor's caches hold most of what a text asks for.
    """
    columns, width = columns.copy(), int(columns.max()) + 1
    found = np.bincount(np.concatenate([_NO_BUCKETS, *(vector.buckets for vector in vectors)]))
    new = np.flatnonzero((found > 0) & (columns[: len(found)] < 0))
    new = new[np.argsort(-found[new], kind="stable")]
    columns[new] = np.arange(width, width + len(new))
    return columns, width + len(new)
