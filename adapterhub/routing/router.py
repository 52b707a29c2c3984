"""A first, simple router: hashed n-grams and logistic regression over what the cards say.

Hashing keeps n-grams that no example holds in the norm of a request, so a foreign request looks less sure than it
would with a fixed vocabulary. One class more, trained on a shipped list of small talk and general questions, stands
for "none of the adapters".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

from adapterhub.errors import RoutingError
from adapterhub.registry.cards import AdapterCard
from adapterhub.routing.decision import RouteDecision, RouteReason

DEFAULT_THRESHOLD = 0.5
_NONE = "~none"  # no adapter can be called that
_MAX_CHARACTERS = 20_000


class AdapterRouter:
    """Chooses the adapter for a request. Build one with `fit` or `from_cards`; a router never changes.

    Attributes:
        adapters: The names it chooses from.
    """

    def __init__(self, model: Any, thresholds: Mapping[str, float]) -> None:
        self._model = model
        self._thresholds = dict(thresholds)
        self.adapters: tuple[str, ...] = tuple(name for name in model.classes_.tolist() if name != _NONE)

    @classmethod
    def fit(
        cls,
        examples: Mapping[str, Sequence[str]],
        *,
        negatives: Iterable[str] = (),
        thresholds: Mapping[str, float] | None = None,
    ) -> AdapterRouter:
        """Trains a router.

        Args:
            examples: Adapter name -> requests that belong to it.
            negatives: Requests that belong to none, beside the shipped list.
            thresholds: Adapter name -> the confidence it needs, 0 to 1; 0.5 if not given.

        Raises:
            RoutingError: No adapter has an example.
        """
        pairs = sorted((text, name) for name, texts in examples.items() for text in texts if text.strip())
        if not pairs:
            raise RoutingError(
                "No adapter has example requests, so there is nothing to route by.",
                hint="Put a few requests into routing.examples of each card.",
            )
        pairs += [(text, _NONE) for text in (*_general_requests(), *negatives)]
        model = _pipeline()
        model.fit([text for text, _ in pairs], [name for _, name in pairs])
        return cls(model, thresholds or {})

    @classmethod
    def from_cards(cls, cards: Iterable[AdapterCard]) -> AdapterRouter:
        """Trains a router on the cards: descriptions, keywords, tags and example requests.

        Raises:
            RoutingError: No card says anything to route by.
        """
        ready = sorted((card for card in cards if card.status == "ready"), key=lambda card: card.name)
        return cls.fit(
            {card.name: _texts(card) for card in ready},
            negatives=[text for card in ready for text in card.routing.negatives],
            thresholds={c.name: c.routing.threshold for c in ready if c.routing.threshold is not None},
        )

    def route(self, text: str) -> RouteDecision:
        """Decides for one request.

        Args:
            text: The request; of a very long one the beginning and the end count.
        """
        probabilities = self._model.predict_proba([_shortened(text)])[0]
        by_name = dict(zip(self._model.classes_.tolist(), probabilities.tolist(), strict=True))
        none = by_name.pop(_NONE)
        scores = dict(sorted(by_name.items(), key=lambda item: -item[1]))
        best, confidence = next(iter(scores.items()))
        threshold = self._thresholds.get(best, DEFAULT_THRESHOLD)
        reason = _reason(confidence, threshold, none)
        return RouteDecision(best if reason == "matched" else None, confidence, threshold, reason, scores)


def _reason(confidence: float, threshold: float, none: float) -> RouteReason:
    if confidence >= threshold:
        return "matched"
    return "none_of_these" if none > confidence else "below_threshold"


def _texts(card: AdapterCard) -> list[str]:
    routing = card.routing
    about = [routing.description or card.description, " ".join(routing.keywords), " ".join(card.tags)]
    return [*routing.examples, *(text for text in about if text)]


def _shortened(text: str) -> str:
    half = _MAX_CHARACTERS // 2
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:half]} {text[-half:]}"


def _general_requests() -> list[str]:
    lines = files("adapterhub.routing").joinpath("general_requests.txt").read_text(encoding="utf-8")
    return [line for line in lines.splitlines() if line]


def _pipeline() -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    words = HashingVectorizer(
        ngram_range=(1, 2), n_features=2**15, alternate_sign=False, token_pattern=r"\w+"
    )
    letters = HashingVectorizer(
        analyzer="char_wb", ngram_range=(2, 4), n_features=2**15, alternate_sign=False, norm="l2"
    )
    head = LogisticRegression(C=30.0, class_weight="balanced", max_iter=1000, random_state=0)
    return make_pipeline(make_union(words, letters), head)
