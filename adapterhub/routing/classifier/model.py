"""A fitted router as an immutable value; a change makes another one."""

from __future__ import annotations

import hashlib
from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

from adapterhub.routing.classifier.arrays import BoolArray
from adapterhub.routing.classifier.calibration import Calibration, HeldOut, Policy
from adapterhub.routing.classifier.encoding import Encoder
from adapterhub.routing.classifier.fitting import (
    TrainingSet,
    encoder_head,
    fit_encoder,
    predict_held_out,
    samples_of,
)
from adapterhub.routing.classifier.one_vs_rest import fit_head
from adapterhub.routing.classifier.scorer import FittedHead, Scorer
from adapterhub.routing.routes import OUT_OF_SCOPE, Route

TOP_K_REFITTED = 5
"""Other routes whose classifiers are fitted again when a route is added."""


@dataclass(frozen=True)
class RouterModel:
    """A fitted router.

    Attributes:
        routes: The routes, by name.
        negatives: Out-of-scope requests.
        general: More of them; those too similar to a route's own texts are left out.
        policy: The targets of calibration.
        training: The training set.
        scorer: Text to scores, in the order of `routes`.
        calibration: Scores to confidences and thresholds.
        held_out: The cross-validated predictions of the last full fit.
        changes: Routes added or removed since the last full fit.
        added: The route of each class that was fitted since.
    """

    routes: tuple[Route, ...]
    negatives: tuple[str, ...]
    general: tuple[str, ...]
    policy: Policy
    training: TrainingSet
    scorer: Scorer
    calibration: Calibration
    held_out: tuple[HeldOut, ...] = ()
    changes: int = 0
    added: tuple[str, ...] = ()

    @classmethod
    def fit(
        cls,
        routes: Iterable[Route],
        negatives: Iterable[str] = (),
        general: Iterable[str] = (),
        policy: Policy | None = None,
        encoder: Encoder | None = None,
    ) -> Self:
        """Fits everything; the order of routes, examples and negatives has no influence."""
        ordered, policy = tuple(sorted(routes, key=lambda route: route.name)), policy or Policy()
        negatives, general = tuple(sorted(set(negatives))), tuple(sorted(set(general)))
        names, own = [route.name for route in ordered], samples_of(ordered, negatives)
        training = TrainingSet.make(own, general)
        scorer, scored = training.fit(names), list(training.cross_validate(names)) if names else []
        if encoder and scored:
            head, scored = fit_encoder(encoder, training, names, scored)
            scorer = replace(scorer, encoder=head)
        held_out = predict_held_out(training, names, scored)
        calibration = Calibration.fit(held_out, policy)
        return cls(ordered, negatives, general, policy, training, scorer, calibration, tuple(held_out))

    def refitted(self) -> RouterModel:
        """A full fit of the same routes."""
        head = self.scorer.encoder
        encoder = head.encoder if head else None
        return self.fit(self.routes, self.negatives, self.general, self.policy, encoder)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The routes' names."""
        return tuple(route.name for route in self.routes)

    @cached_property
    def with_rules(self) -> tuple[int, ...]:
        """The indices of the routes that have rules."""
        return tuple(index for index, route in enumerate(self.routes) if route.phrases or route.patterns)

    @cached_property
    def ready(self) -> BoolArray:
        """Which routes are enabled (routes)."""
        return np.array([route.is_ready for route in self.routes], dtype=bool)

    @cached_property
    def version(self) -> str:
        """A digest of the training data, and `+n` for changes since the last full fit."""
        parts = [
            *(route.digest for route in self.routes),
            *self.negatives,
            "",
            *self.general,
            self.policy.model_dump_json(),
        ]
        digest = hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:12]
        return f"{digest}+{self.changes}" if self.changes else digest

    def with_route(self, route: Route) -> RouterModel:
        """Adds or replaces a route.

        Its classifier is fitted, and those of the routes that score highest on its texts; others hardly change.
        """
        model = self.without_route(route.name) if route.name in self.names else self
        samples, index = samples_of([route]), bisect(model.names, route.name)
        routes = (*model.routes[:index], route, *model.routes[index:])
        similar = model._most_similar([sample.text for sample in samples if not sample.negative_for])
        names = [route.name, *similar]
        training = model.training.with_texts(samples)
        linear, before = fit_head(training.samples, names), model.added
        if before:
            linear = model.scorer.heads[1].linear.concatenate(linear)
        head = FittedHead(training.columns, linear, training.neighbours([*before, *names]))
        all_names = [one.name for one in routes]
        scorer = model.scorer.with_classes(head, index, [all_names.index(name) for name in similar])
        return model._changed(routes, training, scorer, (*before, *names))

    def _most_similar(self, texts: Sequence[str]) -> list[str]:
        """The routes with the highest scores on some texts."""
        if not self.routes:
            return []
        highest = np.max([self.scorer.score_text(text).values for text in texts], axis=0)
        return [self.names[index] for index in np.argsort(-highest, kind="stable")[:TOP_K_REFITTED]]

    def without_route(self, name: str) -> RouterModel:
        """Removes a route; the other classifiers stay as they are."""
        index = self.names.index(name)
        routes = (*self.routes[:index], *self.routes[index + 1 :])
        return self._changed(
            routes, self.training.without_route(name), self.scorer.without(index), self.added
        )

    def _changed(
        self, routes: tuple[Route, ...], training: TrainingSet, scorer: Scorer, added: tuple[str, ...]
    ) -> RouterModel:
        if scorer.encoder and routes:
            head, _ = encoder_head(scorer.encoder.encoder, training, [route.name for route in routes])
            scorer = replace(scorer, encoder=replace(head, weights=scorer.encoder.weights))
        names = {route.name for route in routes}
        return RouterModel(
            routes,
            self.negatives,
            self.general,
            self.policy,
            training,
            scorer,
            self.calibration,
            tuple(one for one in self.held_out if one.route in names or one.route == OUT_OF_SCOPE),
            self.changes + 1,
            added,
        )
