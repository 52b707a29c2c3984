"""How often the router is right: by number of examples, after changes, and on requests that are long or mistyped."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from adapterhub import AdapterRouter, RouteDecision
from adapterhub.routing.analysis.evaluation import evaluate
from adapterhub.routing.routes import Route
from benchmarks.output import progress
from benchmarks.routing.data import Clinc, Requests, draw, with_filler, with_typo
from benchmarks.routing.figures import ROUTER, SHIPPED, WITH_NEGATIVES, Figures, three
from benchmarks.routing.rivals import Answers, rivals

ADDED = 10
"""Routes that are added one by one, and removed again."""


def answers_of(decisions: Sequence[RouteDecision]) -> Answers:
    """The router's decisions as those of any contender."""
    return Answers([one.best or "" for one in decisions], np.array([one.confidence for one in decisions]))


def measured(router: AdapterRouter, test: Requests, out_of_scope: Sequence[str]) -> dict[str, float]:
    """All measures of a router."""
    inside = {name: router.route_batch(texts) for name, texts in test.items()}
    outside = router.route_batch(out_of_scope)
    found, joined = evaluate(inside, outside), [one for some in inside.values() for one in some]
    truth = [name for name, texts in test.items() for _ in texts]
    automatic = {"retention": found.retention, "OOS refused": found.out_of_scope_recall}
    return {
        **three(truth, answers_of(joined), answers_of(outside)),
        **{measure: 100 * (share or 0.0) for measure, share in automatic.items()},
        "ECE": found.calibration_error or 0.0,
    }


def hits(router: AdapterRouter, test: Requests, change: Callable[[str], str] = str) -> float:
    """How often the best route is the right one, in %, after each request has been changed."""
    decided = [
        (name, router.route(change(text)))
        for name, texts in test.items()
        if name in router.adapters
        for text in texts
    ]
    return 100 * sum(one.best == name for name, one in decided) / len(decided)


def accuracy(clinc: Clinc, options: argparse.Namespace) -> Figures:
    """All intents and all domains as routes, with few examples and with all, and the rivals on the same ones."""
    figures = Figures("accuracy")
    intents, domains = f"{len(clinc.train)} routes", f"{len(clinc.domains)} domains"
    for shots in (5, 10, 20, None):
        _draws(figures, f"{intents}, {_each(shots)}", clinc, clinc.train, clinc.test, None, shots, options)
    train, test = clinc.by_domain(clinc.train), clinc.by_domain(clinc.test)
    for shots in (10, None):
        _draws(figures, f"{domains}, {_each(shots)}", clinc, train, test, clinc.tags, shots, options)
    return figures


def _each(shots: int | None) -> str:
    return f"{shots} each" if shots else "all"


def _draws(
    figures: Figures,
    setting: str,
    clinc: Clinc,
    train: Requests,
    test: Requests,
    tags: Mapping[str, Sequence[str]] | None,
    shots: int | None,
    options: argparse.Namespace,
) -> None:
    """Every draw of one setting; there is only one of all examples."""
    texts = [text for some in test.values() for text in some]
    truth = [name for name, some in test.items() for _ in some]
    for seed in options.seeds if shots else options.seeds[:1]:
        examples = draw(train, shots, seed)
        kinds: dict[str, tuple[bool, Sequence[str]]] = {
            ROUTER: (False, ()),
            SHIPPED: (True, ()),
            WITH_NEGATIVES: (False, clinc.negatives),
        }
        for contender, (general, negatives) in kinds.items():
            progress(f"{setting}, seed {seed}: {contender}")
            router = AdapterRouter.fit(examples, tags=tags, negatives=negatives, general_negatives=general)
            figures.add(setting, contender, measured(router, test, clinc.out_of_scope))
            if contender == ROUTER:
                alone = router
        for contender, rival in rivals(alone):
            progress(f"{setting}, seed {seed}: {contender}")
            found = three(truth, rival.answers(texts), rival.answers(clinc.out_of_scope))
            figures.add(setting, contender, found)


def incremental(clinc: Clinc, options: argparse.Namespace) -> Figures:
    """Accuracy after routes were added one by one, or removed, against a full fit."""
    figures, count = Figures("incremental"), len(clinc.train)
    few = min(ADDED, count // 2)
    added, removed = f"{few} routes added to {count - few}", f"{few} routes removed from {count}"
    for seed in options.seeds:
        progress(f"incremental, seed {seed}")
        examples = draw(clinc.train, 10, seed)
        late = random.Random(seed).sample(sorted(examples), few)
        early = {name: texts for name, texts in examples.items() if name not in late}
        fewer, all_of_them = AdapterRouter.fit(early), AdapterRouter.fit(examples)
        grown, shrunk = fewer.model, all_of_them.model
        for name in late:
            grown = grown.with_route(Route.make(name, examples[name]))
            shrunk = shrunk.without_route(name)
        pairs = {added: (AdapterRouter(grown), all_of_them), removed: (AdapterRouter(shrunk), fewer)}
        for setting, (changed, refitted) in pairs.items():
            own, whole = hits(changed, clinc.test), hits(refitted, clinc.test)
            found = {"one by one": own, "fitted anew": whole, "difference": own - whole}
            figures.add(setting, SHIPPED, found)
    return figures


def robustness(clinc: Clinc, options: argparse.Namespace) -> Figures:
    """Accuracy on requests amid filler, and with a typo, against the requests as they are."""
    figures = Figures("robustness")
    for seed in options.seeds:
        rng = random.Random(seed)
        changes: dict[str, Callable[[str], str]] = {
            "25 words of filler": lambda text, rng=rng: with_filler(text, rng),  # type: ignore[misc]
            "25 words, no full stops": lambda text, rng=rng: with_filler(text, rng, sentence=False),  # type: ignore[misc]
            "one typo": lambda text, rng=rng: with_typo(text, rng),  # type: ignore[misc]
        }
        for contender, general in ((ROUTER, False), (SHIPPED, True)):
            progress(f"robustness, seed {seed}: {contender}")
            router = AdapterRouter.fit(draw(clinc.train, 10, seed), general_negatives=general)
            plain = hits(router, clinc.test)
            for setting, change in changes.items():
                found = hits(router, clinc.test, change)
                figures.add(setting, contender, {"plain": plain, "changed": found, "loss": plain - found})
    return figures


def encoder(clinc: Clinc, options: argparse.Namespace) -> Figures:
    """The demo base's own token embeddings on top of the n-grams, 10 examples each."""
    from adapterhub import load_base
    from adapterhub.routing.classifier.embeddings import TokenEmbeddings

    figures, base = Figures("encoder"), load_base("adapterhub-demo", device="cpu")
    encoders = {
        ROUTER: None,
        "router, base's embeddings": TokenEmbeddings.of_base(base),
        "router, base's embeddings, plain mean": TokenEmbeddings.of_base(base, weighted=False),
    }
    intents, domains = f"{len(clinc.train)} routes, 10 each", f"{len(clinc.domains)} domains, 10 each"
    tasks = {
        intents: (clinc.train, clinc.test, None),
        domains: (clinc.by_domain(clinc.train), clinc.by_domain(clinc.test), clinc.tags),
    }
    for seed in options.seeds:
        for setting, (train, test, tags) in tasks.items():
            for contender, given in encoders.items():
                progress(f"{setting}, seed {seed}: {contender}")
                router = AdapterRouter.fit(
                    draw(train, 10, seed), tags=tags, general_negatives=False, encoder=given
                )
                figures.add(setting, contender, measured(router, test, clinc.out_of_scope))
    return figures
