"""Problems of a router's routes, with what is needed to fix the cards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from adapterhub.registry.routing_rules import rule_problems
from adapterhub.routing.classifier.calibration import HeldOut
from adapterhub.routing.classifier.model import RouterModel
from adapterhub.routing.routes import OUT_OF_SCOPE, Route

MIN_EXAMPLES = 5
MIN_CONFUSION = 0.2
"""Share of two routes' held-out examples predicted as the other one from which on the pair is reported."""
_MAX_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """A problem of one or two routes.

    Attributes:
        kind: `"unusable_rule"`: a phrase or pattern that is left out; `"few_examples"`; `"shared_example"`: the same
            example under several adapters; `"mixed_up"`: held-out examples of one adapter that go to another.
        adapters: The adapters that it concerns.
        message: The problem, as one sentence.
        examples: The first few examples that show it.
    """

    kind: Literal["unusable_rule", "few_examples", "shared_example", "mixed_up"]
    adapters: tuple[str, ...]
    message: str
    examples: tuple[str, ...] = ()


def findings(model: RouterModel) -> list[Finding]:
    """All problems of a fitted router's routes."""
    return [*findings_before_fit(model.routes), *_mixed_up(model.held_out)]


def findings_before_fit(routes: Sequence[Route]) -> list[Finding]:
    """The problems that show without training."""
    return [*_unusable_rules(routes), *_few_examples(routes), *_shared_examples(routes)]


def _unusable_rules(routes: Iterable[Route]) -> Iterator[Finding]:
    for route in routes:
        for problem in rule_problems(route.phrases, route.patterns):
            yield Finding("unusable_rule", (route.name,), f"{route.name}: {problem}")


def _few_examples(routes: Iterable[Route]) -> Iterator[Finding]:
    for route in routes:
        if len(route.examples) < MIN_EXAMPLES:
            count = len(route.examples) or "no"
            many = "" if count == 1 else "s"
            yield Finding(
                "few_examples",
                (route.name,),
                f"{route.name} has {count} example request{many}; give it {MIN_EXAMPLES} or more.",
            )


def _shared_examples(routes: Iterable[Route]) -> Iterator[Finding]:
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
        yield Finding(
            "shared_example", pair, f"{' and '.join(pair)} share {many}.", tuple(texts[:_MAX_SHOWN])
        )


def _mixed_up(held_out: Sequence[HeldOut]) -> Iterator[Finding]:
    totals = Counter(one.route for one in held_out)
    wrong: dict[tuple[str, str], list[str]] = {}
    for one in held_out:
        if not one.correct and one.route != OUT_OF_SCOPE:
            wrong.setdefault((min(one.route, one.best), max(one.route, one.best)), []).append(one.text)
    for (first, second), texts in sorted(wrong.items(), key=lambda found: (-len(found[1]), found[0])):
        share = len(texts) / (totals[first] + totals[second])
        if share >= MIN_CONFUSION and len(texts) > 1:
            message = f"{first} and {second} are confused in {share:.0%} of held-out examples."
            yield Finding("mixed_up", (first, second), message, tuple(texts[:_MAX_SHOWN]))
