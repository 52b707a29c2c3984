"""What a router knows about each adapter: what it learns from, its rules, and what filters ask for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.errors import RoutingError, describe_validation
from adapterhub.registry.cards import AdapterCard
from adapterhub.routing.classifier.head import NONE
from adapterhub.routing.rules import check_pattern

LONGEST_EXAMPLE = 4_000
"""Characters of an example that are learned from."""


class Route(BaseModel):
    """One adapter as the router sees it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """The adapter's name."""
    examples: tuple[str, ...] = ()
    """Requests that belong to it."""
    about: tuple[str, ...] = ()
    """Its name, description and tags: each an example of its own, never held out when thresholds are chosen."""
    negatives: tuple[str, ...] = ()
    """Requests that look like its own and are not."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """The confidence it needs; None for the router's own."""
    phrases: tuple[str, ...] = ()
    """A request with one of these goes here before the classifier is asked."""
    patterns: tuple[str, ...] = ()
    """Regular expressions that do the same."""
    version: int | None = None
    """The adapter's version."""
    tags: tuple[str, ...] = ()
    """Tags that filters may ask for."""
    status: Literal["ready", "disabled"] = "ready"
    """Only a ready adapter is chosen."""
    base: BaseFingerprint | None = None
    """The base that the adapter is for; None if unknown."""

    @classmethod
    def make(
        cls,
        name: str,
        examples: Sequence[str] = (),
        *,
        description: str = "",
        tags: Sequence[str] = (),
        negatives: Sequence[str] = (),
        **more: Any,
    ) -> Self:
        """A route from what a person says; blank texts are left out, the same text counts once.

        Args:
            name: The adapter's name.
            examples: Requests that belong to it.
            description: Which requests belong to it, in a sentence.
            tags: Words for them.
            negatives: Requests that look like its own and are not.
            **more: Further fields.

        Raises:
            RoutingError: There is nothing to learn from, the name is the router's own, or a field is not valid.
        """
        if name == NONE:
            raise RoutingError(f"A route cannot be called {NONE!r}.", hint="That is the router's own name.")
        told = _texts(name, "examples", examples), _texts(name, "tags", [description, *tags])
        if not any(told):
            raise RoutingError(
                f"Route {name!r} has no example requests, description or tags, so there is nothing to route by.",
                hint="Give it a few examples: routing.examples on the adapter's card.",
            )
        about = _texts(name, "tags", [name.replace("_", " ").replace("-", " "), *told[1]])
        try:
            route = cls(
                name=name,
                examples=told[0],
                about=about,
                negatives=_texts(name, "negatives", negatives),
                tags=tuple(tags),
                **more,
            )
        except ValidationError as error:
            raise RoutingError(f"Route {name!r} is not valid: {describe_validation(error)}.") from error
        for pattern in route.patterns:
            check_pattern(pattern)
        return route

    @classmethod
    def from_card(cls, card: AdapterCard) -> Self | None:
        """The route of an adapter; None if its card says nothing to route by."""
        routing = card.routing
        description = routing.description or card.description
        if not any(text.strip() for text in (*routing.examples, *routing.keywords, *card.tags, description)):
            return None
        return cls.make(
            card.name,
            routing.examples,
            description=description,
            tags=(*card.tags, *([" ".join(routing.keywords)] if routing.keywords else [])),
            negatives=routing.negatives,
            threshold=routing.threshold,
            phrases=routing.phrases,
            patterns=routing.patterns,
            version=card.version,
            status=card.status,
            base=card.base.fingerprint,
        )

    @property
    def digest(self) -> str:
        """A digest of everything the route says (sha256, hex)."""
        return hashlib.sha256(self.model_dump_json().encode("utf-8", "surrogatepass")).hexdigest()


def from_cards(cards: Iterable[AdapterCard]) -> list[Route]:
    """The routes of all adapters that can be routed to, by name."""
    routes = (Route.from_card(card) for card in cards)
    return sorted((route for route in routes if route), key=lambda route: route.name)


def from_examples(
    examples: Mapping[str, Sequence[str]],
    descriptions: Mapping[str, str] | None = None,
    tags: Mapping[str, Sequence[str]] | None = None,
    **by_name: Mapping[str, Any] | None,
) -> list[Route]:
    """Routes from mappings by name, as `AdapterRouter.fit` takes them."""
    descriptions, tags = descriptions or {}, tags or {}
    names = sorted({*examples, *descriptions, *tags})
    for field, given in by_name.items():
        unknown = sorted({*(given or ())} - {*names})
        if unknown:
            raise RoutingError(f"There are {field} for {unknown[0]!r}, which is no route.")
    return [
        Route.make(
            name,
            examples.get(name, ()),
            description=descriptions.get(name, ""),
            tags=tags.get(name, ()),
            **{field: given[name] for field, given in by_name.items() if given and name in given},
        )
        for name in names
    ]


def _texts(name: str, field: str, texts: Sequence[str]) -> tuple[str, ...]:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise RoutingError(f"The {field} of {name!r} must be a list of texts.")
    cut = (text[:LONGEST_EXAMPLE] for text in texts if text.strip())
    return tuple(sorted(set(cut)))
