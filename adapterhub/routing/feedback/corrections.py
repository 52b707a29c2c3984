"""Corrections of decisions, as JSON Lines, and learning from them: examples and negatives on the adapters' cards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Self, TypeAlias

from adapterhub.errors import AdapterHubError, DatasetError, InvalidRequestError
from adapterhub.registry.cards import AdapterCard, CardFields
from adapterhub.registry.references import check_name
from adapterhub.registry.store import AdapterRegistry
from adapterhub.routing.feedback.json_lines import read_json_lines
from adapterhub.routing.routes import MAX_EXAMPLE_CHARS

_Kind: TypeAlias = Literal["examples", "negatives"]


class Correction(NamedTuple):
    """A person's label of a request.

    Attributes:
        text: The request.
        adapter: The adapter that it belongs to, or None for no adapter.
        best: The best route of the decision, if the line names it.
        location: Where the line is, for messages.
    """

    text: str
    adapter: str | None
    best: str | None = None
    location: str = ""


def read_corrections(path: str | Path) -> Iterator[Correction]:
    """Reads lines of JSON with `text` and `correct`: the right adapter's name, or null for none.

    Lines without `correct` are decisions that were not reviewed, and are skipped. So a decision log with texts, of this
    version or an older one, can be edited and read back.

    Raises:
        DatasetError: A line is no such JSON, or the file is larger than 64 MiB.
    """
    for location, entry in read_json_lines(path):
        if "correct" not in entry:
            continue
        text, adapter, best = entry.get("text"), entry["correct"], entry.get("best")
        if not isinstance(text, str) or not isinstance(adapter, str | None):
            raise DatasetError(
                f"{location} has no text, or its adapter is no name.",
                hint='A line is {"text": "...", "correct": "name"}; log with texts to have them.',
            )
        yield Correction(text, adapter, best if isinstance(best, str) else None, location)


@dataclass(frozen=True)
class CardCorrections:
    """What corrections add to one card.

    Attributes:
        card: The card before.
        examples: New examples: requests that belong to the adapter.
        negatives: New negatives: requests that do not.
    """

    card: AdapterCard
    examples: tuple[str, ...]
    negatives: tuple[str, ...]

    @classmethod
    def of(cls, card: AdapterCard, examples: Sequence[str], negatives: Sequence[str]) -> Self:
        """The texts that a card does not have yet."""
        routing = card.routing
        return cls(card, _without(examples, routing.examples), _without(negatives, routing.negatives))

    @property
    def count(self) -> int:
        """The number of new texts."""
        return len(self.examples) + len(self.negatives)

    def applied_to(self, card: AdapterCard) -> CardFields:
        """The changed fields of a card; a new example is removed from its negatives, and vice versa."""
        routing = card.routing
        new = CardCorrections.of(card, self.examples, self.negatives)
        examples = (*_without(routing.examples, self.negatives), *new.examples)
        negatives = (*_without(routing.negatives, self.examples), *new.negatives)
        return {"routing": {"examples": examples, "negatives": negatives}}


class _CardText(NamedTuple):
    """A correction as a text for one card."""

    location: str
    text: str
    adapter: str
    kind: _Kind


def learn_corrections(path: str | Path, registry: AdapterRegistry) -> tuple[list[CardCorrections], int]:
    """Adds a file's corrections to the cards; nothing is changed unless all of them are valid.

    Args:
        path: As for `read_corrections`; with `correct` null, `best` names the adapter that gains a negative.
        registry: The adapters.

    Returns:
        What each card gained, and the number of corrections that the cards had already.

    Raises:
        DatasetError: A line cannot be used; the message names it.
    """
    by_card, known = corrections_by_card(path, registry)
    for one in by_card:
        registry.revise(one.card.ref, one.applied_to)
    return by_card, known


def corrections_by_card(path: str | Path, registry: AdapterRegistry) -> tuple[list[CardCorrections], int]:
    """As `learn_corrections`, without changing the cards."""
    cards: dict[str, AdapterCard] = {}
    first: dict[str, _CardText] = {}
    texts: dict[tuple[str, _Kind], dict[str, str]] = {}
    corrections = [_card_text(one) for one in read_corrections(path)]
    for one in corrections:
        key = _key(one.text)
        _check_consistent(first.setdefault(key, one), one)
        with _located(one.location):
            cards[one.adapter] = cards.get(one.adapter) or registry.get(check_name(one.adapter))
        texts.setdefault((one.adapter, one.kind), {}).setdefault(key, one.text)
    added = {target: [*found.values()] for target, found in texts.items()}
    by_card = [
        CardCorrections.of(cards[name], added.get((name, "examples"), []), added.get((name, "negatives"), []))
        for name in sorted(cards)
    ]
    for change in by_card:
        _check_size(change)
    new = sum(change.count for change in by_card)
    return [change for change in by_card if change.count], len(corrections) - new


def _card_text(correction: Correction) -> _CardText:
    text, location = correction.text, correction.location
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half a surrogate pair, as JSON can hold
        raise DatasetError(f"{location}: the text is not valid Unicode.", hint="Correct the line.") from error
    if not text.strip():
        raise DatasetError(f"{location} has no text.", hint="Remove the line.")
    concerned = correction.best if correction.adapter is None else correction.adapter
    if concerned is None:
        raise DatasetError(
            f"{location} marks every adapter as wrong, and does not name the best one.",
            hint='Add "best": "name", the adapter that the request does not belong to.',
        )
    kind: _Kind = "negatives" if correction.adapter is None else "examples"
    return _CardText(location, text[:MAX_EXAMPLE_CHARS], concerned, kind)


@contextmanager
def _located(location: str) -> Iterator[None]:
    """Adds the location to an error."""
    try:
        yield
    except AdapterHubError as error:
        raise DatasetError(f"{location}: {error.message}", hint=error.hint) from error


def _check_consistent(first: _CardText, one: _CardText) -> None:
    """A request belongs to no adapter, whichever was best, or to one."""
    if one.kind != first.kind or (one.kind == "examples" and one.adapter != first.adapter):
        raise DatasetError(
            f"{one.location} contradicts {first.location[0].lower()}{first.location[1:]} about the same request.",
            hint="Keep the line that is right.",
        )


def _check_size(change: CardCorrections) -> None:
    try:
        change.card.changed(change.applied_to(change.card)).to_json()
    except InvalidRequestError as error:
        raise DatasetError(f"With these corrections: {error.message}", hint=error.hint) from error


def _key(text: str) -> str:
    """Equal for texts that differ in case and whitespace only."""
    return " ".join(text.split()).casefold()


def _without(texts: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    keys = set(map(_key, others))
    return tuple(text for text in texts if _key(text) not in keys)
