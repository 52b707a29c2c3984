"""Two languages in one router, and the shipped adapters with their own cards."""

from __future__ import annotations

import argparse
from pathlib import Path

from adapterhub import AdapterRegistry, AdapterRouter
from benchmarks.output import progress
from benchmarks.routing.data import Clinc, Requests, draw
from benchmarks.routing.figures import SHIPPED, Figures
from examples.demo.data import TASKS
from examples.demo.words import Split

LEARNED, ASKED = 50, 200
"""Requests of each route to learn from, and to measure on."""
ADAPTERS = Path(__file__).parents[2] / "adapters"


def requests_of(task: str, split: Split, count: int, seed: int, language: str | None = None) -> list[str]:
    """So many different requests of a demo task, all in one language if one is given."""
    records = TASKS[task].generate(split, count * (20 if language else 2), seed)
    wanted = [one for one in records if not language or one["check"]["language"] == language]
    said = ([message for message in one["messages"] if message["role"] == "user"] for one in wanted)
    return list(dict.fromkeys(messages[-1]["content"] for messages in said))[:count]


def languages(clinc: Clinc, options: argparse.Namespace) -> Figures:
    """English domains and Russian tasks in one router, with a threshold for each script and with one for both."""
    figures, english = Figures("languages"), clinc.by_domain(clinc.train)
    for seed in options.seeds:
        progress(f"languages, seed {seed}")
        learned = {**draw(english, LEARNED, seed), **_russian("train", LEARNED, seed)}
        router = AdapterRouter.fit(learned, tags=clinc.tags)
        asked: dict[str, Requests] = {
            "English": clinc.by_domain(clinc.test),
            "Russian": _russian("heldout", ASKED, seed),
            "Russian, phrased as learned": _russian("train", ASKED, seed + 1000),
        }
        for language, test in asked.items():
            _add_retention(figures, language, router, test)
        figures.add("out of scope, English", SHIPPED, {"retention": _retention(router, clinc.out_of_scope)})
    return figures


def _russian(split: Split, count: int, seed: int) -> Requests:
    return {f"{task}_ru": requests_of(task, split, count, seed, "ru") for task in ("json", "support")}


def _add_retention(figures: Figures, language: str, router: AdapterRouter, test: Requests) -> None:
    decided = [(name, one) for name, texts in test.items() for one in router.route_batch(texts)]
    general = router.model.calibration.general
    alike = [general.confidence(one.score) >= general.threshold for _, one in decided]
    figures.add(
        language,
        SHIPPED,
        {
            "accuracy": 100 * sum(one.best == name for name, one in decided) / len(decided),
            "retention": 100 * sum(not one.fallback for _, one in decided) / len(decided),
            "retention, one threshold": 100 * sum(alike) / len(alike),
        },
    )


def _retention(router: AdapterRouter, texts: list[str]) -> float:
    decided = router.route_batch(texts)
    return 100 * sum(not one.fallback for one in decided) / len(decided)


def demo(clinc: Clinc, options: argparse.Namespace) -> Figures:
    """The shipped adapters by their cards, asked the held-out side of their tasks, and CLINC150's requests."""
    figures, router = Figures("demo"), AdapterRouter.from_registry(AdapterRegistry(ADAPTERS))
    sent = [text for texts in clinc.test.values() for text in texts] + clinc.out_of_scope
    to_base = 100 - _retention(router, sent)
    for seed in options.seeds:
        progress(f"demo, seed {seed}")
        asked = {task: requests_of(task, "heldout", ASKED, seed) for task in TASKS}
        right = {
            task: 100 * sum(one.adapter == task for one in router.route_batch(texts)) / len(texts)
            for task, texts in asked.items()
        }
        figures.add(
            "four shipped adapters",
            SHIPPED,
            {"right adapter": sum(right.values()) / len(right), **right, "OOS to base": to_base},
        )
    return figures
