"""Which adapter should answer a request.

A decision takes the caller's choice, then rules, then the classifier. The model is an immutable value: readers take a
reference and never lock; a change builds another model and replaces the reference. A change of one route fits that
route's classifier immediately, and a full fit follows in the background: then the order of changes has no influence.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

from adapterhub.errors import InvalidRequestError, RoutingError
from adapterhub.registry.cards import AdapterCard
from adapterhub.routing.analysis.evaluation import Evaluation, evaluate
from adapterhub.routing.analysis.explanation import Explanation, explain
from adapterhub.routing.analysis.health import Finding, findings
from adapterhub.routing.classifier.calibration import Policy
from adapterhub.routing.classifier.encoding import Encoder
from adapterhub.routing.classifier.model import RouterModel
from adapterhub.routing.classifier.storage import load_model, save_model
from adapterhub.routing.classifier.text import last_user_text
from adapterhub.routing.deciding import decide
from adapterhub.routing.decision import RouteDecision
from adapterhub.routing.filters import EVERYTHING, RouteFilter
from adapterhub.routing.routes import Route, routes_from_cards, routes_from_examples

if TYPE_CHECKING:
    from adapterhub.registry.store import AdapterRegistry
    from adapterhub.routing.feedback.decision_log import DecisionLog

Prompt: TypeAlias = str | Sequence[Mapping[str, Any]]
Fallback: TypeAlias = str | Callable[[str, RouteDecision], str | None] | None


class AdapterRouter:
    """Chooses the adapter for a request, or none; made with `fit`, `from_registry` or `load`.

    Any thread may call any method at any time; `route` never waits for a change.

    Args:
        model: The fitted model.
        fallback: What answers if no route reaches its threshold: None for the base, an adapter's name, or a callable
            from the request and the decision to a name or None.
        shadow: Log decisions, and send every request to the fallback.
        log: The log of decisions.
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

    # Training

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
            tags: Adapter name -> keywords of its requests.
            negatives: Out-of-scope requests; or adapter name -> requests that look like its own and are not.
            thresholds: Adapter name -> the confidence it needs, 0 to 1, in place of the calibrated threshold.
            phrases: Adapter name -> words or phrases that choose it before the classifier is asked.
            patterns: Adapter name -> regular expressions that do the same.
            general_negatives: Also train on the shipped list of out-of-scope requests: small talk and general
                questions, English and Russian.
            policy: The targets that thresholds are calibrated for.
            encoder: A callable from texts to vectors (n, dimensions); its scores add to those of the n-grams.
            **options: As for the constructor: `fallback`, `shadow`, `log`.

        Raises:
            InvalidRequestError: An argument is not valid.
            RoutingError: There is nothing to train on, or the encoder fails.
        """
        by_name = negatives if isinstance(negatives, Mapping) else None
        routes = routes_from_examples(
            examples,
            descriptions,
            tags,
            negatives=by_name,
            threshold=thresholds,
            phrases=phrases,
            patterns=patterns,
        )
        others = () if by_name is not None else negatives
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
            cards: The adapters' cards; those without text to route by are left out.
            negatives: Out-of-scope requests, in addition to the shipped list.
            policy: As for `fit`.
            encoder: As for `fit`.
            **options: As for the constructor.

        Raises:
            RoutingError: No card has text to route by.
        """
        return cls._of(routes_from_cards(cards), negatives, general_requests(), policy, encoder, options)

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
        """The present model, an immutable value."""
        return self._model

    @property
    def version(self) -> str:
        """A digest of the training data, and `+n` for changes since the last full fit."""
        return self._model.version

    def route(
        self, prompt: Prompt, *, adapter: str | None = None, where: RouteFilter = EVERYTHING
    ) -> RouteDecision:
        """Decides for one request.

        Args:
            prompt: A text, or messages, of which the last user message is routed. Fenced code is left out, and of a
                very long text the middle.
            adapter: Choose this route without asking rules or classifier.
            where: Restricts the routes that may be chosen.

        Raises:
            InvalidRequestError: `adapter` is no route.
            RoutingError: The encoder fails.
        """
        text, model = last_user_text(prompt), self._model
        decision = decide(model, text, adapter, where)
        if self._shadow and not decision.fallback:
            decision = replace(decision, reason="shadow", fallback=True, adapter=None)
        if decision.fallback and self._fallback is not None:
            decision = replace(decision, adapter=self._fallback_for(text, decision, where))
        if self._log:
            self._log.write(decision, text)
        return decision

    def route_batch(
        self, prompts: Iterable[Prompt], *, where: RouteFilter = EVERYTHING
    ) -> list[RouteDecision]:
        """Decides for several requests; see `route`."""
        return [self.route(prompt, where=where) for prompt in prompts]

    def _fallback_for(self, text: str, decision: RouteDecision, where: RouteFilter) -> str | None:
        """What the router falls back to; the base where that is an adapter that the filter names not."""
        name = self._fallback(text, decision) if callable(self._fallback) else self._fallback
        return name if name is None or where.admits_name(name) else None

    # Analysis

    def explain(self, prompt: Prompt, *, where: RouteFilter = EVERYTHING) -> Explanation:
        """A decision with the n-grams and the example behind it."""
        text, model = last_user_text(prompt), self._model
        return explain(model, text, decide(model, text, None, where))

    def evaluate(self, examples: Mapping[str, Sequence[str]], out_of_scope: Sequence[str] = ()) -> Evaluation:
        """Evaluates decisions on requests that are not in the training set.

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
        """Problems of the routes: too few examples, examples shared by two routes, pairs that are confused."""
        return findings(self._model)

    def stale(self, registry: AdapterRegistry) -> tuple[str, ...]:
        """The adapters that were added, changed or removed since this router was trained."""
        return tuple(sorted(name for name, _ in self._differences(registry.list())))

    # Changing

    def add(self, name: str, examples: Sequence[str] = (), **fields: Any) -> None:
        """Adds a route immediately; a full fit follows in the background.

        Args:
            name: The adapter's name.
            examples: Requests that belong to it.
            **fields: `description`, `tags`, `negatives`, `threshold`, `phrases`, `patterns`; see `fit`.

        Raises:
            InvalidRequestError: There is such a route, or a field is not valid.
            RoutingError: There is nothing to train on.
        """
        self._put(Route.make(name, examples, **fields), exists=False)

    def update(self, name: str, examples: Sequence[str] = (), **fields: Any) -> None:
        """Replaces a route; arguments as for `add`.

        Raises:
            InvalidRequestError: There is no such route, or a field is not valid.
            RoutingError: There is nothing to train on.
        """
        self._put(Route.make(name, examples, **fields), exists=True)

    def remove(self, name: str) -> None:
        """Removes a route immediately; a full fit follows in the background.

        Raises:
            InvalidRequestError: There is no such route.
        """
        with self._writing:
            self._check_exists(name)
            self._model = self._model.without_route(name)
        self._refit_later()

    def sync(self, cards: Iterable[AdapterCard]) -> tuple[str, ...]:
        """Updates the routes from a registry's cards, and returns the names of the adapters that changed."""
        with self._writing:
            changed, model = self._differences(cards), self._model
            for name, route in changed:
                model = model.with_route(route) if route else model.without_route(name)
            self._model = model
        if changed:
            self._refit_later()
        return tuple(name for name, _ in changed)

    def refit(self) -> None:
        """Does a full fit now, calibration included; routing goes on meanwhile."""
        while (model := self._model).changes:
            fresh = model.refitted()
            with self._writing:
                if self._model is model:
                    self._model = fresh

    def settle(self, timeout: float | None = None) -> bool:
        """Waits for the fit in the background, if any; returns whether it ended before the timeout (seconds)."""
        thread = self._refitting
        if thread:
            thread.join(timeout)
        return not (thread and thread.is_alive())

    def _put(self, route: Route, exists: bool) -> None:
        with self._writing:
            if exists:
                self._check_exists(route.name)
            elif route.name in self._model.names:
                raise InvalidRequestError(
                    f"There is a route {route.name!r} already.", hint="update() replaces it."
                )
            self._model = self._model.with_route(route)
        self._refit_later()

    def _check_exists(self, name: str) -> None:
        if name not in self._model.names:
            raise InvalidRequestError(f"There is no route {name!r}.", hint="router.adapters lists them.")

    def _differences(self, cards: Iterable[AdapterCard]) -> list[tuple[str, Route | None]]:
        """Each route that differs between model and cards, as the cards have it; None if it was removed."""
        fitted, registered = (
            {route.name: route for route in routes}
            for routes in (self._model.routes, routes_from_cards(cards))
        )
        names = sorted({*fitted, *registered})
        return [(name, registered.get(name)) for name in names if fitted.get(name) != registered.get(name)]

    def _refit_later(self) -> None:
        with self._writing:
            if self._refitting is None or not self._refitting.is_alive():
                self._refitting = threading.Thread(target=self.refit, name="adapterhub-router", daemon=True)
                self._refitting.start()

    # Files

    def save(self, path: str | Path) -> None:
        """Writes the router to one file, atomically: arrays and JSON in skops' format, without the encoder's code.

        Raises:
            RoutingError: The file cannot be written.
        """
        self.refit()
        save_model(self._model, Path(path))

    @classmethod
    def load(cls, path: str | Path, *, encoder: Encoder | None = None, **options: Any) -> Self:
        """Reads a router that `save` wrote; its scores are bit-identical.

        Args:
            path: The file.
            encoder: The encoder that it was trained with, if any.
            **options: As for the constructor.

        Raises:
            RoutingError: The file is missing, damaged, too large, of another format, or needs its encoder.
        """
        return cls(load_model(Path(path), encoder), **options)


def general_requests() -> list[str]:
    """The shipped list of out-of-scope requests: small talk and general questions, English and Russian."""
    lines = files("adapterhub.routing").joinpath("general_requests.txt").read_text(encoding="utf-8")
    return [line for line in lines.splitlines() if line and not line.startswith("#")]
