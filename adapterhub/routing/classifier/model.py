"""What a router has learned: an immutable value, replaced whole when something changes."""

from __future__ import annotations

import hashlib
from bisect import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np

from adapterhub.routing.classifier.calibration import Calibration, HeldOut, Policy
from adapterhub.routing.classifier.encoding import Encoder
from adapterhub.routing.classifier.fitting import Table, encoder_head, fit_encoder, held_out, samples_of
from adapterhub.routing.classifier.head import NONE, fit_rows
from adapterhub.routing.classifier.scorer import Part, Scorer
from adapterhub.routing.filters import EVERYTHING, RouteFilter
from adapterhub.routing.routes import Route

RIVALS = 5
"""Rows that are fitted anew when a route is added."""


@dataclass(frozen=True)
class RouterModel:
    """A fitted router.

    Attributes:
        routes: The routes, by name.
        negatives: Requests for no adapter.
        general: More of them, each learned from unless it resembles what some route learns from.
        policy: How sure it has to be.
        table: What was learned from.
        scorer: Text to scores, in the order of `routes`.
        calibration: Scores to confidences and thresholds.
        held_out: What the fit made of examples that it had not seen.
        changes: Routes added or removed since the last whole fit.
        added: The route of each row that was fitted since.
    """

    routes: tuple[Route, ...]
    negatives: tuple[str, ...]
    general: tuple[str, ...]
    policy: Policy
    table: Table
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
        """Learns everything anew; the order of routes, examples and negatives has no influence."""
        ordered, policy = tuple(sorted(routes, key=lambda route: route.name)), policy or Policy()
        negatives, general = tuple(sorted(set(negatives))), tuple(sorted(set(general)))
        names, own = [route.name for route in ordered], samples_of(ordered, negatives)
        table = Table.make(own, general)
        scorer, unseen = table.fit(names), list(table.unseen(names)) if names else []
        if encoder and unseen:
            head, unseen = fit_encoder(encoder, table, names, unseen)
            scorer = replace(scorer, encoder=head)
        seen = held_out(table, names, unseen)
        calibration = Calibration.fit(seen, policy)
        return cls(ordered, negatives, general, policy, table, scorer, calibration, tuple(seen))

    def refitted(self) -> RouterModel:
        """Everything learned anew from the same routes."""
        head = self.scorer.encoder
        encoder = head.encoder if head else None
        return self.fit(self.routes, self.negatives, self.general, self.policy, encoder)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The routes' names."""
        return tuple(route.name for route in self.routes)

    @cached_property
    def ruled(self) -> tuple[int, ...]:
        """The places of the routes that have rules."""
        return tuple(place for place, route in enumerate(self.routes) if route.phrases or route.patterns)

    def admitted(self, where: RouteFilter) -> np.ndarray:
        """Which routes a filter admits (routes); no filter at all is the usual case."""
        return self._ready if where == EVERYTHING else self._admitted(where)

    @cached_property
    def _ready(self) -> np.ndarray:
        return self._admitted(EVERYTHING)

    def _admitted(self, where: RouteFilter) -> np.ndarray:
        return np.array([where.admits(route) for route in self.routes], dtype=bool)

    @cached_property
    def version(self) -> str:
        """A digest of everything that was learned from, and how many changes came after the last whole fit."""
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
        """This model with a route more, or another in place of one.

        Its own row is fitted, and those of the routes that would answer for it: others have little to learn from it.
        """
        model = self.without_route(route.name) if route.name in self.names else self
        samples, place = samples_of([route]), bisect(model.names, route.name)
        routes = (*model.routes[:place], route, *model.routes[place:])
        rivals = model._rivals([sample.text for sample in samples if not sample.against])
        names = [route.name, *rivals]
        table = model.table.with_texts(samples)
        rows, before = fit_rows(table.samples, names), model.added
        if before:
            rows = model.scorer.parts[1].rows.beside(rows)
        part = Part(table.columns, rows, table.neighbours([*before, *names]))
        all_names = [one.name for one in routes]
        scorer = model.scorer.with_rows(part, place, [all_names.index(name) for name in rivals])
        return model._changed(routes, table, scorer, (*before, *names))

    def _rivals(self, texts: Sequence[str]) -> list[str]:
        """The routes whose rows are the nearest to answering for these texts."""
        if not self.routes:
            return []
        highest = np.max([self.scorer.score_text(text).scores for text in texts], axis=0)
        return [self.names[place] for place in np.argsort(-highest, kind="stable")[:RIVALS]]

    def without_route(self, name: str) -> RouterModel:
        """This model with a route less; the other rows stay as they are."""
        place = self.names.index(name)
        routes = (*self.routes[:place], *self.routes[place + 1 :])
        return self._changed(routes, self.table.without_route(name), self.scorer.without(place), self.added)

    def _changed(
        self, routes: tuple[Route, ...], table: Table, scorer: Scorer, added: tuple[str, ...]
    ) -> RouterModel:
        if scorer.encoder and routes:
            head, _ = encoder_head(scorer.encoder.encoder, table, [route.name for route in routes])
            scorer = replace(scorer, encoder=replace(head, weights=scorer.encoder.weights))
        names = {route.name for route in routes}
        return RouterModel(
            routes,
            self.negatives,
            self.general,
            self.policy,
            table,
            scorer,
            self.calibration,
            tuple(one for one in self.held_out if one.route in names or one.route == NONE),
            self.changes + 1,
            added,
        )
