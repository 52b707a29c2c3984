"""Routes: what the router is trained on for each adapter, its rules, and what filters compare."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapterhub.base.fingerprint import BaseFingerprint
from adapterhub.errors import InvalidRequestError, RoutingError, describe_validation
from adapterhub.registry.cards import AdapterCard
from adapterhub.registry.routing_rules import check_rules

OUT_OF_SCOPE = "~none"
"""The label of requests that belong to no adapter; no adapter's name can begin with `~`."""
MAX_EXAMPLE_CHARS = 4_000
"""Characters of an example that the router is trained on; the rest is cut off."""


class Route(BaseModel):
    """One adapter as the router sees it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """The adapter's name."""
    examples: tuple[str, ...] = ()
    """Requests that belong to it."""
    about: tuple[str, ...] = ()
    """Its name, description and tags: training texts that are never held out for calibration."""
    negatives: tuple[str, ...] = ()
    """Requests that look like its own and are not."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """The confidence that it needs; None for the calibrated threshold."""
    phrases: tuple[str, ...] = ()
    """A request with one of these phrases goes here before the classifier is asked."""
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
        **fields: Any,
    ) -> Self:
        """A route with its texts cleaned: blank texts and duplicates are left out, order does not matter.

        Args:
            name: The adapter's name.
            examples: Requests that belong to it.
            description: Which requests belong to it, in a sentence.
            tags: Keywords of its requests.
            negatives: Requests that look like its own and are not.
            **fields: Further fields.

        Raises:
            InvalidRequestError: The name is reserved, or a field is not valid.
            RoutingError: There is no text to train on.
        """
        route = cls._make(name, examples, description, tags, negatives, **fields)
        check_rules(route.phrases, route.patterns)
        return route

    @classmethod
    def _make(
        cls,
        name: str,
        examples: Sequence[str],
        description: str,
        tags: Sequence[str],
        negatives: Sequence[str],
        **fields: Any,
    ) -> Self:
        if name == OUT_OF_SCOPE:
            raise InvalidRequestError(
                f"A route cannot be called {OUT_OF_SCOPE!r}.",
                hint="The router uses it for out-of-scope requests.",
            )
        cleaned, about = _clean(name, "examples", examples), _clean(name, "tags", [description, *tags])
        if not cleaned and not about:
            raise RoutingError(
                f"Route {name!r} has no example requests, description or tags, so there is nothing to route by.",
                hint="Give it a few examples: routing.examples on the adapter's card.",
            )
        try:
            return cls(
                name=name,
                examples=cleaned,
                about=_clean(name, "tags", [name.replace("_", " ").replace("-", " "), *about]),
                negatives=_clean(name, "negatives", negatives),
                tags=tuple(tags),
                **fields,
            )
        except ValidationError as error:
            raise InvalidRequestError(
                f"Route {name!r} is not valid: {describe_validation(error)}."
            ) from error

    @classmethod
    def from_card(cls, card: AdapterCard) -> Self | None:
        """The route of an adapter; None if its card has no text to route by.

        Rules that cannot be used stay in the route and are left out when it is matched.
        """
        routing = card.routing
        description = routing.description or card.description
        if not any(text.strip() for text in (*routing.examples, *routing.keywords, *card.tags, description)):
            return None
        return cls._make(
            card.name,
            routing.examples,
            description,
            (*card.tags, *([" ".join(routing.keywords)] if routing.keywords else [])),
            routing.negatives,
            threshold=routing.threshold,
            phrases=routing.phrases,
            patterns=routing.patterns,
            version=card.version,
            status=card.status,
            base=card.base.fingerprint,
        )

    @property
    def is_ready(self) -> bool:
        """Whether the adapter is enabled."""
        return self.status == "ready"

    @property
    def digest(self) -> str:
        """A digest of all fields (sha256, hex)."""
        return hashlib.sha256(self.model_dump_json().encode("utf-8", "surrogatepass")).hexdigest()


def routes_from_cards(cards: Iterable[AdapterCard]) -> list[Route]:
    """The routes of all adapters whose cards have text to route by, by name."""
    routes = (Route.from_card(card) for card in cards)
    return sorted((route for route in routes if route), key=lambda route: route.name)


def routes_from_examples(
    examples: Mapping[str, Sequence[str]],
    descriptions: Mapping[str, str] | None = None,
    tags: Mapping[str, Sequence[str]] | None = None,
    **fields: Mapping[str, Any] | None,
) -> list[Route]:
    """Routes from mappings by adapter name; arguments and errors as for `AdapterRouter.fit`."""
    descriptions, tags = descriptions or {}, tags or {}
    names = sorted({*examples, *descriptions, *tags})
    for field, by_name in fields.items():
        unknown = sorted({*(by_name or ())} - {*names})
        if unknown:
            raise InvalidRequestError(f"There are {field} for {unknown[0]!r}, which is no route.")
    return [
        Route.make(
            name,
            examples.get(name, ()),
            description=descriptions.get(name, ""),
            tags=tags.get(name, ()),
            **{field: by_name[name] for field, by_name in fields.items() if by_name and name in by_name},
        )
        for name in names
    ]


def _clean(name: str, field: str, texts: Sequence[str]) -> tuple[str, ...]:
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise InvalidRequestError(f"The {field} of {name!r} must be a list of texts.")
    return tuple(sorted({text[:MAX_EXAMPLE_CHARS] for text in texts if text.strip()}))
