"""The training set: routes to samples, samples to a fitted scorer, and predictions for held-out samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np

from adapterhub.routing.classifier.arrays import BoolArray, FloatArray, IntArray
from adapterhub.routing.classifier.calibration import HeldOut
from adapterhub.routing.classifier.encoding import (
    CANDIDATE_WEIGHTS,
    Z_THRESHOLD,
    Encoder,
    EncoderHead,
    encode,
    fit_ridge,
)
from adapterhub.routing.classifier.features import (
    BUCKETS,
    VECTOR_NORM,
    SparseVector,
    TfidfWeighting,
    hash_ngrams,
    normalize_text,
    to_csr,
)
from adapterhub.routing.classifier.neighbours import NearestNeighbours
from adapterhub.routing.classifier.one_vs_rest import Samples, assign_folds, fit_head
from adapterhub.routing.classifier.scorer import FittedHead, Scorer
from adapterhub.routing.classifier.text import segment_request
from adapterhub.routing.routes import OUT_OF_SCOPE, Route

MAX_EXAMPLES_TEN_FOLDS = 400
"""Examples up to which there are ten folds; five above."""
MAX_HELD_OUT = 1_500
"""Held-out examples after which no further fold is evaluated."""
DUPLICATE_COSINE = 0.4
"""Cosine similarity to a route's sample above which a request of the shipped list is left out."""
_NO_COLUMNS, _NO_BUCKETS = np.full(2 * BUCKETS, -1, np.intp), np.zeros(0, np.intp)


class Sample(NamedTuple):
    """A training text.

    Attributes:
        text: The text.
        label: Its route, or `OUT_OF_SCOPE`.
        negative_for: The only route that it is a negative of, or "".
        is_request: Whether it is a request, and so is held out in its fold.
    """

    text: str
    label: str
    negative_for: str = ""
    is_request: bool = False


def samples_of(routes: Iterable[Route], negatives: Iterable[str] = ()) -> list[Sample]:
    """Every text of the routes, and out-of-scope requests less those that are some route's own."""
    found: list[Sample] = []
    for route in routes:
        found += [Sample(text, route.name, is_request=True) for text in route.examples]
        found += [Sample(text, route.name) for text in route.about]
        found += [Sample(text, OUT_OF_SCOPE, route.name) for text in route.negatives]
    claimed = {normalize_text(sample.text) for sample in found if not sample.negative_for}
    others = sorted({text for text in negatives if normalize_text(text) not in claimed})
    return found + [Sample(text, OUT_OF_SCOPE, is_request=True) for text in others]


class HeldOutScores(NamedTuple):
    """The scores of a held-out sample.

    Attributes:
        sample: Its index among the samples.
        script: The script of most of its letters.
        scores: One per route (routes).
    """

    sample: int
    script: str
    scores: FloatArray


@dataclass(frozen=True)
class TrainingSet:
    """Samples with their features.

    Attributes:
        texts: The samples.
        weighting: TF-IDF weights of the n-grams.
        columns: Bucket -> column, -1 for buckets without training data (buckets).
        samples: The training data of the linear head.
    """

    texts: tuple[Sample, ...]
    weighting: TfidfWeighting
    columns: IntArray
    samples: Samples

    @classmethod
    def make(
        cls, own: Sequence[Sample], general: Sequence[str] = (), weighting: TfidfWeighting | None = None
    ) -> Self:
        """Computes features; IDF weights are fitted unless they are given.

        Args:
            own: The samples.
            general: Out-of-scope requests; those too similar to a route's sample are left out.
            weighting: TF-IDF weights.
        """
        found = [hash_ngrams(text) for text in (*(sample.text for sample in own), *general)]
        weighting = weighting or TfidfWeighting.fit(found)
        vectors = [weighting.vector(one) for one in found]
        own_vectors, general_vectors = vectors[: len(own)], vectors[len(own) :]
        in_scope = [one for one, sample in zip(own_vectors, own, strict=True) if sample.label != OUT_OF_SCOPE]
        used = np.flatnonzero(~_duplicates(general_vectors, in_scope)).tolist()
        texts = [*own, *(Sample(general[index], OUT_OF_SCOPE, is_request=True) for index in used)]
        used_vectors = [general_vectors[index] for index in used]
        return cls._of(texts, weighting, _NO_COLUMNS, [*own_vectors, *used_vectors])

    @classmethod
    def _of(
        cls,
        texts: Sequence[Sample],
        weighting: TfidfWeighting,
        columns: IntArray,
        vectors: Sequence[SparseVector],
    ) -> Self:
        columns, width = _with_columns(columns, vectors)
        samples = Samples(
            to_csr(vectors, columns, width),
            np.array([sample.label for sample in texts], dtype=object),
            np.array([sample.negative_for for sample in texts], dtype=object),
        )
        return cls(tuple(texts), weighting, columns, samples)

    def with_texts(self, texts: Sequence[Sample]) -> TrainingSet:
        """Adds samples; known n-grams keep their weights and columns, new ones get the next columns."""
        vectors = [self.weighting.vector(hash_ngrams(sample.text)) for sample in texts]
        added = self._of(texts, self.weighting, self.columns, vectors)
        return replace(added, texts=self.texts + added.texts, samples=self.samples.concatenate(added.samples))

    def without_route(self, name: str) -> TrainingSet:
        """Removes the samples of a route."""
        return self._drop(
            np.array([name in (sample.label, sample.negative_for) for sample in self.texts], bool)
        )

    def _drop(self, mask: BoolArray) -> TrainingSet:
        texts = tuple(sample for sample, drop in zip(self.texts, mask.tolist(), strict=True) if not drop)
        return replace(self, texts=texts, samples=self.samples.drop(mask))

    def fit(self, routes: Sequence[str], held_out: BoolArray | None = None) -> Scorer:
        """Fits a scorer on all samples but those of the mask `held_out` (n)."""
        used = self if held_out is None else self._drop(held_out)
        head = fit_head(used.samples, [*routes, OUT_OF_SCOPE])
        return Scorer.of(self.weighting, FittedHead(self.columns, head, used.neighbours(routes)))

    def neighbours(self, routes: Sequence[str]) -> NearestNeighbours:
        """The positives of each route, for nearest-neighbour search."""
        indices = [np.flatnonzero(self.samples.positives(route)) for route in routes]
        chosen = np.concatenate(indices) if indices else np.zeros(0, np.intp)
        texts = [self.texts[index].text for index in chosen]
        return NearestNeighbours(self.samples.features[chosen], texts, [len(own) for own in indices])

    def cross_validate(self, routes: Sequence[str]) -> Iterator[HeldOutScores]:
        """Scores requests with a scorer that was fitted without their fold."""
        labels = [sample.label for sample in self.texts if sample.is_request]
        count = 10 if len(labels) < MAX_EXAMPLES_TEN_FOLDS else 5
        folds = np.full(len(self.texts), -1)
        folds[[sample.is_request for sample in self.texts]] = assign_folds(labels, count)
        for fold in range(min(count, math.ceil(MAX_HELD_OUT * count / max(1, len(labels))))):
            mask = folds == fold
            if mask.any():
                scorer = self.fit(routes, held_out=mask)
                for index in np.flatnonzero(mask).tolist():
                    yield _score_held_out(scorer, index, self.texts[index].text)


def predict_held_out(
    training: TrainingSet, routes: Sequence[str], scored: Iterable[HeldOutScores]
) -> list[HeldOut]:
    """The best route of each held-out request."""
    found = []
    for one in scored:
        best = int(one.scores.argmax())
        sample = training.texts[one.sample]
        found.append(HeldOut(sample.text, sample.label, routes[best], float(one.scores[best]), one.script))
    return found


def fit_encoder(
    encoder: Encoder, training: TrainingSet, routes: Sequence[str], scored: Sequence[HeldOutScores]
) -> tuple[EncoderHead, list[HeldOutScores]]:
    """Fits an encoder's head, chooses its weight for each script, and adds it to the held-out scores."""
    head, left_out = encoder_head(encoder, training, routes)
    weights = {
        script: _best_weight(training, routes, [one for one in scored if one.script == script], left_out)
        for script in sorted({one.script for one in scored})
    }
    added = [one._replace(scores=one.scores + weights[one.script] * left_out[one.sample]) for one in scored]
    return replace(head, weights=weights), added


def encoder_head(
    encoder: Encoder, training: TrainingSet, routes: Sequence[str]
) -> tuple[EncoderHead, FloatArray]:
    """An encoder's head without weights, and its leave-one-out scores (n, routes)."""
    vectors = encode(encoder, [sample.text for sample in training.texts])
    targets = training.samples.labels[:, None] == np.array(routes, dtype=object)[None, :]
    coefficients, left_out = fit_ridge(vectors, targets.astype(np.float64))
    return EncoderHead(encoder, vectors, coefficients, {}), left_out


def _best_weight(
    training: TrainingSet, routes: Sequence[str], scored: Sequence[HeldOutScores], left_out: FloatArray
) -> float:
    """The weight with the highest accuracy; 0 unless the gain is significant (McNemar's test)."""
    scored = [one for one in scored if training.texts[one.sample].label != OUT_OF_SCOPE]
    if not scored:
        return 0.0
    indices = [one.sample for one in scored]
    labels = training.samples.labels[indices]
    linear, names = np.stack([one.scores for one in scored]), np.array(routes, dtype=object)
    correct = {
        weight: names[(linear + weight * left_out[indices]).argmax(axis=1)] == labels
        for weight in CANDIDATE_WEIGHTS
    }
    best = max(CANDIDATE_WEIGHTS, key=lambda weight: (correct[weight].sum(), -weight))
    gained, lost = (correct[best] & ~correct[0.0]).sum(), (correct[0.0] & ~correct[best]).sum()
    return best if gained - lost > Z_THRESHOLD * math.sqrt(gained + lost) else 0.0


def _duplicates(texts: Sequence[SparseVector], in_scope: Sequence[SparseVector]) -> BoolArray:
    """Which texts (n) are too similar to an in-scope sample."""
    if not texts or not in_scope:
        return np.zeros(len(texts), bool)
    columns, width = _with_columns(_NO_COLUMNS, in_scope)
    products = to_csr(texts, columns, width) @ to_csr(in_scope, columns, width).T
    return np.asarray(products.max(axis=1).toarray() > DUPLICATE_COSINE * VECTOR_NORM**2).ravel()


def _score_held_out(scorer: Scorer, index: int, text: str) -> HeldOutScores:
    request = segment_request(text)
    scores, _ = scorer.score(request.segments, request.script)
    return HeldOutScores(index, request.script, scores.values)


def _with_columns(columns: IntArray, vectors: Sequence[SparseVector]) -> tuple[IntArray, int]:
    """Adds a column for each new bucket of the vectors, and returns the number of columns too.

    New columns are ordered by frequency: the weights of common n-grams then share cache lines.
    """
    columns, width = columns.copy(), int(columns.max()) + 1
    counts = np.bincount(np.concatenate([_NO_BUCKETS, *(vector.indices for vector in vectors)]))
    new = np.flatnonzero((counts > 0) & (columns[: len(counts)] < 0))
    new = new[np.argsort(-counts[new], kind="stable")]
    columns[new] = np.arange(width, width + len(new))
    return columns, width + len(new)
