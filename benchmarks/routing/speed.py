"""How long a decision, a fit and a change take, and how large the file is."""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import thread_time
from typing import TypeVar

import numpy as np

from adapterhub import AdapterRouter
from adapterhub.routing.classifier.model import RouterModel
from adapterhub.routing.routes import Route
from benchmarks.output import progress
from benchmarks.routing.data import Clinc, Requests, ciphered, draw
from benchmarks.routing.figures import SHIPPED, Figures

WARMING, CHANGES, PARTS = 200, 10, 8
Made = TypeVar("Made")


def taken(do: Callable[[], Made]) -> tuple[Made, float]:
    """The result of a call, and its processor time in this thread, in seconds."""
    started = thread_time()
    made = do()
    return made, thread_time() - started


def decisions(router: AdapterRouter, texts: Sequence[str]) -> dict[str, float]:
    """Milliseconds of one decision; each text is decided on once, after some others to warm up.

    Other work on the machine comes and goes: of `PARTS` stretches of the run, one after the other, `p50 at rest` is the
    lowest median.
    """
    warming = min(WARMING, len(texts) // 2)
    router.route_batch(texts[:warming])
    times = [1000 * taken(lambda: router.route(text))[1] for text in texts[warming:]]  # noqa: B023  called immediately
    p50, p99 = np.quantile(times, [0.5, 0.99])
    at_rest = min(float(np.median(part)) for part in np.array_split(times, PARTS))
    return {"p50 ms": float(p50), "p50 at rest": at_rest, "p99 ms": float(p99)}


def changes(model: RouterModel, routes: Requests) -> dict[str, float]:
    """Median seconds until a route is added or removed; the fit in the background that follows is not in them."""
    adding, removing = [], []
    for name, texts in routes.items():
        more, seconds = taken(lambda: model.with_route(Route.make(name, texts)))  # noqa: B023  called immediately
        adding.append(seconds)
        removing.append(taken(lambda: more.without_route(name))[1])  # noqa: B023  called immediately
    return {"add s": statistics.median(adding), "remove s": statistics.median(removing)}


def file(router: AdapterRouter) -> dict[str, float]:
    """Megabytes of the file, and seconds to write and to read it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "router"
        _, saving = taken(lambda: router.save(path))
        _, loading = taken(lambda: AdapterRouter.load(path))
        return {"file MB": path.stat().st_size / 1e6, "save s": saving, "load s": loading}


def speed(clinc: Clinc, options: argparse.Namespace) -> Figures:
    """The intents, and as many routes as `--routes`, made of them by letter ciphers."""
    figures, seed = Figures("speed"), options.seeds[0]
    for count in dict.fromkeys((len(clinc.train), options.routes)):
        setting = f"{count:,} routes x 10"
        progress(setting)
        train = ciphered(clinc.train, count + CHANGES)
        examples = draw(dict(list(train.items())[:count]), 10, seed)
        late = draw(dict(list(train.items())[count:]), 10, seed)
        AdapterRouter.fit(dict(list(examples.items())[:2]))  # scikit-learn is imported at the first fit
        router, fitting = taken(lambda: AdapterRouter.fit(examples))  # noqa: B023  called immediately
        texts = [text for some in ciphered(clinc.test, count).values() for text in some]
        texts = random.Random(seed).sample(texts, min(options.queries, len(texts)))
        figures.add(
            setting,
            SHIPPED,
            decisions(router, texts) | {"fit s": fitting} | changes(router.model, late) | file(router),
        )
    return figures
