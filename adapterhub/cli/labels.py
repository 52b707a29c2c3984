"""What people say about requests, as JSON Lines: which adapter each belongs to, and corrections of decisions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeAlias

from adapterhub.errors import AdapterHubError, DatasetError, InvalidRequestError
from adapterhub.registry.cards import AdapterCard, CardFields
from adapterhub.registry.references import check_name
from adapterhub.requests.prompts import check_text
from adapterhub.routing.feedback.decision_log import read_corrections
from adapterhub.routing.routes import LONGEST_EXAMPLE

if TYPE_CHECKING:
    from adapterhub.registry import AdapterRegistry

_MOST_BYTES = 64 * 2**20
_Kind: TypeAlias = Literal["examples", "negatives"]


class Labelled(NamedTuple):
    """Requests by the adapter that they belong to, and those that belong to none."""

    inside: dict[str, list[str]]
    outside: list[str]


def read_labelled(path: Path, routes: Sequence[str]) -> Labelled:
    """Reads lines of JSON with `text` and `adapter`, null for a request that is for no adapter.

    Raises:
        DatasetError: A line is something else, or names none of the routes.
    """
    found = Labelled({}, [])
    for place, entry in _lines(path):
        text, adapter = entry.get("text"), entry.get("adapter", "")
        if not isinstance(text, str) or not isinstance(adapter, str | None):
            raise DatasetError(f"{place} has no text.", hint='A line is {"text": "...", "adapter": "name"}.')
        if adapter is not None and adapter not in routes:
            raise DatasetError(
                f"{place} names {adapter!r}, which is no route.",
                hint=f"There are: {', '.join(routes[:10])}; null stands for no adapter.",
            )
        (found.outside if adapter is None else found.inside.setdefault(adapter, [])).append(text)
    if not found.inside and not found.outside:
        raise DatasetError(f"{path} holds no requests.", hint='A line is {"text": "...", "adapter": "name"}.')
    return found


@dataclass(frozen=True)
class Lesson:
    """What an adapter's card gains.

    Attributes:
        card: The card as it is.
        examples: Requests that belong to the adapter after all.
        negatives: Requests that do not.
    """

    card: AdapterCard
    examples: tuple[str, ...]
    negatives: tuple[str, ...]

    @classmethod
    def of(cls, card: AdapterCard, examples: Sequence[str], negatives: Sequence[str]) -> Self:
        """What a card does not have yet of some texts."""
        routing = card.routing
        return cls(card, _without(examples, routing.examples), _without(negatives, routing.negatives))

    @property
    def count(self) -> int:
        """How many texts are new."""
        return len(self.examples) + len(self.negatives)

    def applied_to(self, card: AdapterCard) -> CardFields:
        """The changed settings of a card; a text that is an example now is no longer a negative, and vice versa."""
        routing = card.routing
        more = Lesson.of(card, self.examples, self.negatives)
        examples = (*_without(routing.examples, self.negatives), *more.examples)
        negatives = (*_without(routing.negatives, self.examples), *more.negatives)
        return {"routing": {"examples": examples, "negatives": negatives}}


class _Said(NamedTuple):
    """One correction: where it stands, the request, and the adapter that it concerns."""

    place: str
    text: str
    adapter: str
    kind: _Kind


def read_lessons(path: Path, adapters: AdapterRegistry) -> tuple[list[Lesson], int]:
    """Reads corrections and checks all of them against the cards; changes nothing.

    Returns:
        What each adapter's card gains, and how many corrections tell nothing new.

    Raises:
        DatasetError: A line cannot be used; the message says which one.
    """
    cards: dict[str, AdapterCard] = {}
    first: dict[str, _Said] = {}
    texts: dict[tuple[str, _Kind], dict[str, str]] = {}
    corrections = list(_corrections(path))
    for said in corrections:
        key = _key(said.text)
        _check_agrees(first.setdefault(key, said), said)
        with _at(said.place):
            cards[said.adapter] = cards.get(said.adapter) or adapters.get(check_name(said.adapter))
        texts.setdefault((said.adapter, said.kind), {}).setdefault(key, said.text)
    told = {place: [*found.values()] for place, found in texts.items()}
    lessons = [
        Lesson.of(cards[name], told.get((name, "examples"), []), told.get((name, "negatives"), []))
        for name in sorted(cards)
    ]
    for lesson in lessons:
        _check_size(lesson)
    new = sum(lesson.count for lesson in lessons)
    return [lesson for lesson in lessons if lesson.count], len(corrections) - new


def _corrections(path: Path) -> Iterator[_Said]:
    """Each correction with where it stands and the adapter whose card it concerns."""
    marked = [(place, entry) for place, entry in _lines(path) if "correct" in entry]
    for (place, entry), (text, correct) in zip(marked, read_corrections(path), strict=True):
        with _at(place):
            check_text(text)
        concerned = entry.get("best") if correct is None else correct
        if not text.strip():
            raise DatasetError(f"{place} has no text.", hint="Take the line out.")
        if not isinstance(concerned, str):
            raise DatasetError(
                f"{place} says that no adapter is right, and not which one was best.",
                hint='Add "best": "name", the adapter that the request does not belong to.',
            )
        yield _Said(place, text[:LONGEST_EXAMPLE], concerned, "negatives" if correct is None else "examples")


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON Lines, each with where it stands, for messages."""
    if path.stat().st_size > _MOST_BYTES:
        raise DatasetError(f"{path} is larger than 64 MiB.", hint="Give a part of it.")
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line.strip():
            continue
        place = f"Line {number} of {path}"
        try:
            entry = json.loads(line.decode())
        except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or nested too deep
            raise DatasetError(f"{place} is not JSON in UTF-8.") from error
        if not isinstance(entry, dict):
            raise DatasetError(f"{place} is no JSON object.")
        yield place, entry


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Says where what went wrong stands."""
    try:
        yield
    except AdapterHubError as error:
        raise DatasetError(f"{place}: {error.message}", hint=error.hint) from error


def _check_agrees(first: _Said, said: _Said) -> None:
    """One request may belong to no adapter, whichever was best, or to one."""
    if said.kind != first.kind or (said.kind == "examples" and said.adapter != first.adapter):
        raise DatasetError(
            f"{said.place} says another thing about the same request than {_begun_small(first.place)}.",
            hint="Keep the line that is right.",
        )


def _check_size(lesson: Lesson) -> None:
    try:
        lesson.card.changed(lesson.applied_to(lesson.card)).to_json()
    except InvalidRequestError as error:
        raise DatasetError(f"With these corrections: {error.message}", hint=error.hint) from error


def _key(text: str) -> str:
    """What texts have in common that differ in nothing but case and spaces."""
    return " ".join(text.split()).casefold()


def _without(texts: Sequence[str], gone: Sequence[str]) -> tuple[str, ...]:
    keys = set(map(_key, gone))
    return tuple(text for text in texts if _key(text) not in keys)


def _begun_small(place: str) -> str:
    return place[0].lower() + place[1:]
