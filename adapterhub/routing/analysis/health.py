"""What is wrong with a router's routes, told so that a person can mend the cards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from adapterhub.routing.classifier.calibration import HeldOut
from adapterhub.routing.classifier.head import NONE
from adapterhub.routing.classifier.model import RouterModel
from adapterhub.routing.routes import Route

FEW = 5
MIXED_UP = 0.2
"""Share of a route's held-out examples that another one takes from which on the two are told."""
_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """Something to mend.

    Attributes:
        kind: `"few_examples"`; `"shared_example"`: the same example under several adapters; `"mixed_up"`: held-out
            examples of one adapter that go to another.
        adapters: The adapters that it is about.
        message: What it is, as one sentence.
        examples: The offending examples, the first few.
    """

    kind: Literal["few_examples", "shared_example", "mixed_up"]
    adapters: tuple[str, ...]
    message: str
    examples: tuple[str, ...] = ()


def findings(model: RouterModel) -> list[Finding]:
    """Everything that is wrong with a fitted router's routes."""
    return [*_few(model.routes), *_shared(model.routes), *_mixed_up(model.held_out)]


def findings_before_fit(routes: Sequence[Route]) -> list[Finding]:
    """What is wrong at first sight, without training anything."""
    return [*_few(routes), *_shared(routes)]


def _few(routes: Iterable[Route]) -> Iterator[Finding]:
    for route in routes:
        if len(route.examples) < FEW:
            count = len(route.examples) or "no"
            many = "" if count == 1 else "s"
            yield Finding(
                "few_examples",
                (route.name,),
                f"{route.name} has {count} example request{many}; give it {FEW} or more.",
            )


def _shared(routes: Iterable[Route]) -> Iterator[Finding]:
    owners: dict[str, dict[str, str]] = {}
    for route in routes:
        for text in route.examples:
            owners.setdefault(" ".join(text.casefold().split()), {}).setdefault(route.name, text)
    by_names: dict[tuple[str, ...], list[str]] = {}
    for names in owners.values():
        if len(names) > 1:
            by_names.setdefault(tuple(names), []).append(next(iter(names.values())))
    for pair, texts in sorted(by_names.items()):
        many = "an example" if len(texts) == 1 else f"{len(texts)} examples"
        yield Finding("shared_example", pair, f"{' and '.join(pair)} share {many}.", tuple(texts[:_SHOWN]))


def _mixed_up(held_out: Sequence[HeldOut]) -> Iterator[Finding]:
    asked = Counter(one.route for one in held_out)
    wrong: dict[tuple[str, str], list[str]] = {}
    for one in held_out:
        if not one.right and one.route != NONE:
            wrong.setdefault((min(one.route, one.best), max(one.route, one.best)), []).append(one.text)
    for (first, second), texts in sorted(wrong.items(), key=lambda found: (-len(found[1]), found[0])):
        share = len(texts) / (asked[first] + asked[second])
        if share >= MIXED_UP and len(texts) > 1:
            message = f"{first} and {second} answer for each other in {share:.0%} of cases."
            yield Finding("mixed_up", (first, second), message, tuple(texts[:_SHOWN]))
