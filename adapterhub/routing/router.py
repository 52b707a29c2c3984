"""Which adapter should answer a request.

Order of a decision: the caller's own choice, rules, the classifier. The model is an immutable value: readers take it
once and never lock; a change makes another one and swaps it in. A change of one route fits that route's row at once,
and a whole fit follows in the background, so that the answer after a while does not depend on the order of changes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from adapterhub.errors import RoutingError
from adapterhub.registry.cards import AdapterCard
from adapterhub.routing.analysis.evaluation import Evaluation, evaluate
from adapterhub.routing.analysis.explanation import Explanation, explain
from adapterhub.routing.analysis.health import Finding, findings
from adapterhub.routing.classifier.calibration import Policy
from adapterhub.routing.classifier.encoding import Encoder
from adapterhub.routing.classifier.model import RouterModel
from adapterhub.routing.classifier.storage import load_model, save_model
from adapterhub.routing.classifier.text import request_in
from adapterhub.routing.deciding import decide
from adapterhub.routing.decision import RouteDecision
from adapterhub.routing.filters import EVERYTHING, RouteFilter
from adapterhub.routing.routes import Route, from_cards, from_examples

if TYPE_CHECKING:
    from adapterhub.registry.store import AdapterRegistry
    from adapterhub.routing.feedback.decision_log import DecisionLog

Prompt: TypeAlias = str | Sequence[Mapping[str, Any]]
Fallback: TypeAlias = str | Callable[[str, RouteDecision], str | None] | None


class AdapterRouter:
    """Chooses the adapter for a request, or none. Build one with `fit`, `from_registry` or `load`.

    Any number of threads may route while others add, update or remove routes.

    Args:
        model: What it has learned.
        fallback: Who answers what no adapter is sure about: None for the base, an adapter's name, or a callable from
            the request and the decision so far to a name or None.
        shadow: Decide and record, and send every request to the fallback.
        log: Where decisions are recorded.
    """

    def __init__(
        self,
        model: RouterModel,
        *,
        fallback: Fallback = None,
        shadow: bool = False,
        log: DecisionLog | None = None,
    ) -> None:
        self._model = model
        self._fallback = fallback
        self._shadow = shadow
        self._log = log
        self._writing = threading.Lock()
        self._refitting: threading.Thread | None = None

    # Making one

    @classmethod
    def fit(
        cls,
        examples: Mapping[str, Sequence[str]],
        *,
        descriptions: Mapping[str, str] | None = None,
        tags: Mapping[str, Sequence[str]] | None = None,
        negatives: Iterable[str] | Mapping[str, Sequence[str]] = (),
        thresholds: Mapping[str, float] | None = None,
        phrases: Mapping[str, Sequence[str]] | None = None,
        patterns: Mapping[str, Sequence[str]] | None = None,
        general_negatives: bool = True,
        policy: Policy | None = None,
        encoder: Encoder | None = None,
        **options: Any,
    ) -> Self:
        """Trains a router.

        Args:
            examples: Adapter name -> requests that belong to it.
            descriptions: Adapter name -> which requests belong to it, in a sentence.
            tags: Adapter name -> words for its requests.
            negatives: Requests for no adapter; or adapter name -> requests that look like its own and are not.
            thresholds: Adapter name -> the confidence it needs, 0 to 1, in place of the measured one.
            phrases: Adapter name -> words or phrases that decide for it before the classifier is asked.
            patterns: Adapter name -> regular expressions that do the same.
            general_negatives: Also learn the shipped list of small talk and general questions (English, Russian) as
                requests for no adapter.
            policy: How sure it has to be; see `Policy`.
            encoder: A callable from texts to vectors (n, dimensions), used on top of the n-grams where it helps.
            **options: As for the constructor: `fallback`, `shadow`, `log`.

        Raises:
            RoutingError: There is nothing to learn from, or something is not valid.
        """
        given = negatives if isinstance(negatives, Mapping) else None
        routes = from_examples(
            examples,
            descriptions,
            tags,
            negatives=given,
            threshold=thresholds,
            phrases=phrases,
            patterns=patterns,
        )
        others = () if given is not None else negatives
        general = general_requests() if general_negatives else ()
        return cls._of(routes, others, general, policy, encoder, options)

    @classmethod
    def from_cards(
        cls,
        cards: Iterable[AdapterCard],
        *,
        negatives: Iterable[str] = (),
        policy: Policy | None = None,
        encoder: Encoder | None = None,
        **options: Any,
    ) -> Self:
        """Trains a router on cards: names, descriptions, tags, keywords, example requests, negatives and rules.

        Args:
            cards: The adapters' cards; those that say nothing to route by are passed over.
            negatives: Requests for no adapter, beside the shipped list.
            policy: As for `fit`.
            encoder: As for `fit`.
            **options: As for the constructor.

        Raises:
            RoutingError: No card says anything to route by.
        """
        return cls._of(from_cards(cards), negatives, general_requests(), policy, encoder, options)

    @classmethod
    def from_registry(cls, registry: AdapterRegistry, **settings: Any) -> Self:
        """Trains a router on a registry's cards; arguments and errors as for `from_cards`."""
        return cls.from_cards(registry.list(), **settings)

    @classmethod
    def _of(
        cls,
        routes: Sequence[Route],
        negatives: Iterable[str],
        general: Iterable[str],
        policy: Policy | None,
        encoder: Encoder | None,
        options: Mapping[str, Any],
    ) -> Self:
        if not routes:
            raise RoutingError(
                "No adapter has example requests, a description or tags, so there is nothing to route by.",
                hint="Put a few requests into routing.examples of each card.",
            )
        return cls(RouterModel.fit(routes, negatives, general, policy, encoder), **options)

    # Deciding

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names it chooses from."""
        return self._model.names

    @property
    def model(self) -> RouterModel:
        """What it has learned so far; a value that never changes."""
        return self._model

    @property
    def version(self) -> str:
        """A digest of what was learned from; `+n` tells of changes that the next whole fit takes in."""
        return self._model.version

    def route(
        self, prompt: Prompt, *, adapter: str | None = None, where: RouteFilter = EVERYTHING
    ) -> RouteDecision:
        """Decides for one request.

        Args:
            prompt: A text, or messages of which the last one by the user counts. Of a very long one the beginning and
                the end are read, fenced code is not.
            adapter: Takes this route whatever the request says.
            where: Narrows the routes that may be chosen.

        Raises:
            RoutingError: `adapter` is no route.
        """
        text, model = request_in(prompt), self._model
        decision = decide(model, text, adapter, where)
        if self._shadow and not decision.fallback:
            decision = replace(decision, reason="shadow", fallback=True, adapter=None)
        if decision.fallback and self._fallback is not None:
            decision = replace(decision, adapter=self._fallback_for(text, decision))
        if self._log:
            self._log.write(decision, text)
        return decision

    def route_batch(
        self, prompts: Iterable[Prompt], *, where: RouteFilter = EVERYTHING
    ) -> list[RouteDecision]:
        """Decides for several requests; see `route`."""
        return [self.route(prompt, where=where) for prompt in prompts]

    def _fallback_for(self, text: str, decision: RouteDecision) -> str | None:
        return self._fallback(text, decision) if callable(self._fallback) else self._fallback

    # Looking

    def explain(self, prompt: Prompt, *, where: RouteFilter = EVERYTHING) -> Explanation:
        """A decision with the n-grams and examples that made it."""
        text, model = request_in(prompt), self._model
        return explain(model, text, decide(model, text, None, where))

    def evaluate(self, examples: Mapping[str, Sequence[str]], out_of_scope: Sequence[str] = ()) -> Evaluation:
        """Measures decisions on requests that were not learned from.

        Args:
            examples: Adapter name -> requests that belong to it.
            out_of_scope: Requests that belong to no adapter.
        """
        model = self._model
        decisions = {
            name: [decide(model, text, None, EVERYTHING) for text in texts]
            for name, texts in examples.items()
        }
        return evaluate(decisions, [decide(model, text, None, EVERYTHING) for text in out_of_scope])

    def health(self) -> list[Finding]:
        """What is wrong with the routes: too few examples, the same example twice, routes that are mixed up."""
        return findings(self._model)

    def stale(self, registry: AdapterRegistry) -> tuple[str, ...]:
        """The adapters whose cards say something else than this router learned, which are new, or which are gone."""
        return tuple(sorted(name for name, _ in self._differences(registry.list())))

    # Changing

    def add(self, name: str, examples: Sequence[str] = (), **fields: Any) -> None:
        """Adds a route at once, and has everything fitted anew in the background.

        Args:
            name: The adapter's name.
            examples: Requests that belong to it.
            **fields: `description`, `tags`, `negatives`, `threshold`, `phrases`, `patterns`; see `fit`.

        Raises:
            RoutingError: There is such a route, or there is nothing to learn from.
        """
        self._put(Route.make(name, examples, **fields), known=False)

    def update(self, name: str, examples: Sequence[str] = (), **fields: Any) -> None:
        """Replaces a route; arguments as for `add`.

        Raises:
            RoutingError: There is no such route, or there is nothing to learn from.
        """
        self._put(Route.make(name, examples, **fields), known=True)

    def remove(self, name: str) -> None:
        """Removes a route at once.

        Raises:
            RoutingError: There is no such route.
        """
        with self._writing:
            self._known(name)
            self._model = self._model.without_route(name)
        self._refit_later()

    def sync(self, cards: Iterable[AdapterCard]) -> tuple[str, ...]:
        """Takes in what has changed on a registry's cards, and returns the names of the adapters that changed."""
        with self._writing:
            changed, model = self._differences(cards), self._model
            for name, route in changed:
                model = model.with_route(route) if route else model.without_route(name)
            self._model = model
        if changed:
            self._refit_later()
        return tuple(name for name, _ in changed)

    def refit(self) -> None:
        """Fits everything anew now, which also chooses thresholds; routing goes on meanwhile."""
        while (model := self._model).changes:
            fresh = model.refitted()
            with self._writing:
                if self._model is model:
                    self._model = fresh

    def settle(self, timeout: float | None = None) -> bool:
        """Waits for the fit in the background, if there is one; returns whether it has ended in time (seconds)."""
        thread = self._refitting
        if thread:
            thread.join(timeout)
        return not (thread and thread.is_alive())

    def _put(self, route: Route, known: bool) -> None:
        with self._writing:
            if known:
                self._known(route.name)
            elif route.name in self._model.names:
                raise RoutingError(f"There is a route {route.name!r} already.", hint="update() replaces it.")
            self._model = self._model.with_route(route)
        self._refit_later()

    def _known(self, name: str) -> None:
        if name not in self._model.names:
            raise RoutingError(f"There is no route {name!r}.", hint="router.adapters lists them.")

    def _differences(self, cards: Iterable[AdapterCard]) -> list[tuple[str, Route | None]]:
        """Each route that a registry has otherwise, and what it is there; None if it is gone."""
        mine, theirs = (
            {route.name: route for route in routes} for routes in (self._model.routes, from_cards(cards))
        )
        names = sorted({*mine, *theirs})
        return [(name, theirs.get(name)) for name in names if mine.get(name) != theirs.get(name)]

    def _refit_later(self) -> None:
        with self._writing:
            if self._refitting is None or not self._refitting.is_alive():
                self._refitting = threading.Thread(target=self.refit, name="adapterhub-router", daemon=True)
                self._refitting.start()

    # Keeping

    def save(self, path: str | Path) -> None:
        """Writes the router to one file: arrays and JSON in skops' format, aside first. An encoder's code is not kept.

        Raises:
            RoutingError: The file cannot be written.
        """
        self.refit()
        save_model(self._model, Path(path))

    @classmethod
    def load(cls, path: str | Path, *, encoder: Encoder | None = None, **options: Any) -> Self:
        """Reads a router that `save` wrote; it gives the same scores to the last bit.

        Args:
            path: The file.
            encoder: The encoder that it was trained with, if any.
            **options: As for the constructor.

        Raises:
            RoutingError: The file is missing, damaged, too large, of another format, or needs its encoder.
        """
        return cls(load_model(Path(path), encoder), **options)


def general_requests() -> list[str]:
    """The shipped list of requests that are for no adapter: small talk and general questions, English and Russian."""
    lines = files("adapterhub.routing").joinpath("general_requests.txt").read_text(encoding="utf-8")
    return [line for line in lines.splitlines() if line and not line.startswith("#")]
