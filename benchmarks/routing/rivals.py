"""The baselines that the router is compared with, on the same examples.

`TfidfLogistic` is scikit-learn's TF-IDF of words (1-2) and letters (2-4) with `LogisticRegression`, whose confidence is
the probability of the best route. `NearestUtterances` is the scoring of semantic-router 0.1: the five utterances with
the highest cosine, and for each route the mean or the maximum of its own among them. The package itself needs an
encoder; here the scoring is reimplemented, and reads the router's own hashed vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from adapterhub import AdapterRouter
from adapterhub.routing.classifier.features import VECTOR_NORM, hash_ngrams, to_csr
from adapterhub.routing.classifier.fitting import TrainingSet
from adapterhub.routing.routes import OUT_OF_SCOPE

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]
TOP = 5
"""Utterances that count, semantic-router's `top_k`."""


@dataclass(frozen=True)
class Answers:
    """The answers of a contender to some requests.

    Attributes:
        best: The best route of each (n).
        sure: Its confidence in that (n), on any scale.
    """

    best: list[str]
    sure: Floats


def utterances(table: TrainingSet) -> tuple[list[str], list[str]]:
    """The training texts of all routes, names and tags included, and their routes."""
    own = [sample for sample in table.texts if sample.label != OUT_OF_SCOPE]
    return [sample.text for sample in own], [sample.label for sample in own]


class TfidfLogistic:
    """TF-IDF and logistic regression."""

    def __init__(self, texts: Sequence[str], labels: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline, make_union

        features = make_union(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True),
        )
        self._model = make_pipeline(features, LogisticRegression(C=10, max_iter=500, tol=1e-3))
        self._model.fit(texts, labels)

    def answers(self, texts: Sequence[str]) -> Answers:
        """Decides."""
        probabilities = self._model.predict_proba(texts)
        best = self._model.classes_[probabilities.argmax(axis=1)]
        return Answers(best.tolist(), probabilities.max(axis=1))


class NearestUtterances:
    """semantic-router's scoring over the vectors of a router.

    Args:
        router: What has learned the utterances.
        aggregation: How the utterances of a route count together.
    """

    def __init__(self, router: AdapterRouter, aggregation: Literal["mean", "max"]) -> None:
        self._table, self._mean = router.model.training, aggregation == "mean"
        own = self._table.samples.labels != OUT_OF_SCOPE
        self._utterances = self._table.samples.features[np.flatnonzero(own)]
        self._names, self._codes = np.unique(self._table.samples.labels[own].astype(str), return_inverse=True)

    def answers(self, texts: Sequence[str]) -> Answers:
        """Decides, some hundred requests at a time."""
        blocks = [self._scores(texts[start : start + 500]) for start in range(0, len(texts), 500)]
        scores = np.concatenate(blocks)
        return Answers(self._names[scores.argmax(axis=1)].tolist(), scores.max(axis=1))

    def _scores(self, texts: Sequence[str]) -> Floats:
        table, width = self._table, self._utterances.shape[1]
        vectors = [table.weighting.vector(hash_ngrams(text)) for text in texts]
        cosines = (to_csr(vectors, table.columns, width) @ self._utterances.T).toarray() / VECTOR_NORM**2
        return aggregated(cosines, self._codes, len(self._names), mean=self._mean)


def aggregated(cosines: Floats, codes: Ints, routes: int, *, mean: bool) -> Floats:
    """Scores of routes (n, routes), 0 for those without an utterance among the nearest.

    Args:
        cosines: Of requests with utterances (n, utterances).
        codes: The route of each utterance (utterances).
        routes: How many routes there are.
        mean: Take the mean of a route's utterances, not the maximum.
    """
    nearest = min(TOP, cosines.shape[1])
    indices = np.argpartition(-cosines, nearest - 1, axis=1)[:, :nearest]
    rows = np.arange(len(cosines))[:, None]
    values, labels = cosines[rows, indices], codes[indices]
    scores, counts = np.zeros((len(cosines), routes)), np.zeros((len(cosines), routes))
    if not mean:
        np.maximum.at(scores, (rows, labels), values)
        return scores
    np.add.at(scores, (rows, labels), values)
    np.add.at(counts, (rows, labels), 1)
    return scores / np.maximum(counts, 1)


def rivals(router: AdapterRouter) -> Iterator[tuple[str, TfidfLogistic | NearestUtterances]]:
    """The contenders by name, on the examples that a router has learned."""
    yield "TF-IDF + logistic regression", TfidfLogistic(*utterances(router.model.training))
    yield "nearest utterances, mean", NearestUtterances(router, "mean")
    yield "nearest utterances, max", NearestUtterances(router, "max")
