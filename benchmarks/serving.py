"""Requests for many adapters, arriving at random: throughput and waiting times.

    python -m benchmarks.serving --threads 1 --pin 0 --shape 200m

Requests arrive as a Poisson process and choose their adapter by Zipf's law. All have prompts of one length and answers
of one length, which suits static batches best. Every contender starts without a loaded
adapter and serves the same requests:

- ours: the engine, its steps run for an event loop by its own thread;
- PEFT switching: one request after the other, `set_adapter` before each;
- PEFT grouped: the oldest request and those that wait for the same adapter, as one batch to its end;
- base: all requests that wait, as one batch to its end, without any adapter. It is the ceiling.

The second table requests adapters evenly at random, all requests immediately, from an engine with few slots: throughput
must fall smoothly, and memory stay bounded, when there are more adapters than slots.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adapterhub.base.loading import Base
from adapterhub.config import EngineLimits
from adapterhub.engine.batching import BatchingEngine
from adapterhub.lora.request import StoredLoraRequest
from benchmarks.common import PeakMemory, parser, random_base, report, settle, twins
from benchmarks.contenders import StaticBatch, kv_room_mib, twin
from benchmarks.output import progress, table
from benchmarks.shapes import write_adapter
from benchmarks.traffic import (
    Arrival,
    Clock,
    LazyPeft,
    arrivals,
    serve_in_batches,
    serve_with_engine,
    summary,
)

BatchFor = Callable[[StoredLoraRequest], StaticBatch]
FILES = 8  # shared by all adapters, which differ in their digest


def compare(
    base: Base, sources: Sequence[StoredLoraRequest], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One entry for each contender and number of adapters: the medians of the rounds."""
    results = []
    for count in options.adapters:
        popularity = [1 / rank**options.zipf for rank in range(1, count + 1)]
        rounds: dict[str, list[dict[str, float]]] = {}
        for number in range(options.rounds):
            for name, serve in _contenders(base, options).items():
                if name in options.skip:
                    continue
                progress(f"{count} adapters, {name}")
                requests = _arrivals(sources, popularity, options, seed=number)
                serve(requests)
                rounds.setdefault(name, []).append(summary(requests, options.tokens))
        for name, own in rounds.items():
            medians = {key: statistics.median(one[key] for one in own) for key in own[0]}
            results.append({"adapters": count, "contender": name, **medians})
    return results


def _arrivals(
    sources: Sequence[StoredLoraRequest],
    popularity: Sequence[float],
    options: argparse.Namespace,
    *,
    rate: float | None = None,
    seed: int = 0,
) -> list[Arrival]:
    return arrivals(
        sources,
        popularity,
        requests=options.requests,
        rate=options.rate if rate is None else rate,
        prompt=options.prompt,
        seed=seed,
    )


def _contenders(base: Base, options: argparse.Namespace) -> dict[str, Callable[[list[Arrival]], None]]:
    """Each on a model of its own, without any adapter loaded."""
    rows, tokens = options.rows, options.tokens

    def ours(requests: list[Arrival]) -> None:
        room = kv_room_mib(base, rows, options.prompt + tokens)
        limits = EngineLimits(max_loras=rows, max_batch_size=rows, kv_cache_mib=room)
        engine = BatchingEngine(twin(base), limits)
        serve_with_engine(engine, requests, tokens, Clock(options.clock))
        engine.close()

    def in_batches(
        requests: list[Arrival], max_batch: int, batch_for: BatchFor, *, by_adapter: bool = True
    ) -> None:
        clock = Clock(options.clock)
        serve_in_batches(requests, max_batch, tokens, batch_for, by_adapter=by_adapter, clock=clock)

    def one_by_one(requests: list[Arrival]) -> None:
        in_batches(requests, 1, LazyPeft(twin(base)).batch_for)

    def grouped(requests: list[Arrival]) -> None:
        in_batches(requests, rows, LazyPeft(twin(base)).batch_for)

    def bare(requests: list[Arrival]) -> None:
        in_batches(requests, rows, lambda _: StaticBatch(base.model), by_adapter=False)

    return {"base": bare, "ours": ours, "peft-grouped": grouped, "peft-switching": one_by_one}


def overload(
    base: Base, sources: Sequence[StoredLoraRequest], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """An engine with few slots, with ever more adapters requested, all requests immediately."""
    results = []
    for count in options.overload:
        progress(f"{count} adapters, {options.slots} slots")
        limits = EngineLimits(
            max_loras=options.slots, max_cpu_loras=4 * options.slots, max_batch_size=options.rows
        )
        gc.collect()  # or the peak would have the engine before in it
        engine = BatchingEngine(twin(base), limits)
        requests = _arrivals(sources, [1.0] * count, options, rate=0.0)
        with PeakMemory() as memory:
            serve_with_engine(engine, requests, options.tokens, Clock(options.clock))
        stats = engine.stats()
        engine.close()
        del engine
        results.append(
            {
                "adapters": count,
                **summary(requests, options.tokens),
                "requested": len({one.adapter.name for one in requests}),
                "loads": stats.loads,
                "evictions": stats.evictions,
                "engine_mib": (stats.adapter_bytes + stats.host_bytes + stats.kv_bytes) / 2**20,
                "peak_mib": memory.peak_mib,
            }
        )
    return results


def show(served: list[dict[str, Any]], overloaded: list[dict[str, Any]]) -> None:
    """Prints the tables."""
    for count in dict.fromkeys(one["adapters"] for one in served):
        print(f"\n{count} adapters by Zipf's law")
        own = [one for one in served if one["adapters"] == count]
        keys = ("contender", *(key for key in own[0] if key not in ("adapters", "contender")))
        table([key.replace("_", " ") for key in keys], [[one[key] for key in keys] for one in own])
    if overloaded:
        print("\nmore adapters than slots, evenly at random")
        keys = ("adapters", "requested", "tokens_per_second", "loads", "evictions", "engine_mib", "peak_mib")
        table([key.replace("_", " ") for key in keys], [[one[key] for key in keys] for one in overloaded])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    commands = parser(__doc__, rounds=1)
    commands.add_argument("--adapters", type=int, nargs="*", default=[4, 32, 128, 1000])
    commands.add_argument("--overload", type=int, nargs="*", default=[8, 32, 128, 1000], help="adapters")
    commands.add_argument("--slots", type=int, default=8, help="under overload")
    commands.add_argument("--rows", type=int, default=16, help="maximum rows of a batch")
    commands.add_argument("--requests", type=int, default=64)
    commands.add_argument("--rate", type=float, default=8.0, help="requests a second; 0 is all immediately")
    commands.add_argument("--zipf", type=float, default=1.0, help="exponent of the popularity")
    commands.add_argument("--prompt", type=int, default=32, help="tokens")
    commands.add_argument("--tokens", type=int, default=16, help="of each answer")
    commands.add_argument(
        "--skip", nargs="*", default=[], help="contenders to leave out, such as peft-switching"
    )
    options = commands.parse_args(arguments)
    settle(options)
    with tempfile.TemporaryDirectory() as scratch:
        base = random_base(options, Path(scratch))
        folders = [
            write_adapter(
                Path(scratch) / f"{number}",
                options.shape,
                rank=options.rank,
                dtype=base.compute_dtype,
                seed=number,
            )
            for number in range(FILES)
        ]
        count = max([*options.adapters, *options.overload])
        sources = twins(folders, count, Path(scratch) / "twins")
        _contenders(base, options)["base"](_arrivals(sources, [1.0], options)[:1])  # warms up
        served, overloaded = compare(base, sources, options), overload(base, sources, options)
    report(options, {"served": served, "overload": overloaded}, lambda: show(served, overloaded))


if __name__ == "__main__":
    main()
