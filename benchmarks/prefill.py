"""What prefill costs, over the same prompts under the bare base: the time to the first token.

    python -m benchmarks.prefill --threads 1 --pin 0 --shape 200m --quantization nf4

The tokens are one long prompt, or several shorter ones of which each has an adapter of its own. Ours is the
requests' whole path through the engine to their first tokens, as one step and in steps of 512 tokens, the default;
storing the prompts in the prefix cache is included. The bare base is one forward of a static batch in plain
transformers. PEFT sets its adapter, or prefills the prompts one after the other, or mixes them. Every round has new
prompts, so the prefix cache never hits.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from adapterhub.base.loading import Base
from adapterhub.config import EngineLimits
from adapterhub.engine.batching import BatchingEngine
from adapterhub.engine.interface import Request
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.lora.request import StoredLoraRequest
from benchmarks.common import interleaved, parser, random_adapters, random_base, ratio, report, settle
from benchmarks.contenders import Contender, PeftSwitching, StaticBatch, kv_room_mib, load_peft, twin
from benchmarks.output import progress, table
from benchmarks.shapes import VOCABULARY

BASE, FRESH, OURS = "base, static batch", "ours, no adapter", "ours"
PEFT_ONE, PEFT_SWITCHING, PEFT_MIXED = "PEFT set_adapter", "PEFT switching", "PEFT mixed batch"
STEP = EngineLimits.max_num_batched_tokens
ONCE = SamplingParams(max_tokens=1)


class Engine:
    """An engine that answers with one token.

    Args:
        base: Its own; see `benchmarks.contenders.twin`.
        adapters: Loaded when it is made.
        prompts: Maximum number of concurrent prompts.
        tokens: Of all prompts together.
        step: Maximum number of tokens of a step.
    """

    def __init__(
        self, base: Base, adapters: Sequence[StoredLoraRequest], prompts: int, tokens: int, step: int
    ) -> None:
        limits = EngineLimits(
            max_loras=max(1, len(adapters)),
            max_batch_size=prompts,
            max_num_batched_tokens=max(step, prompts),
            kv_cache_mib=kv_room_mib(base, 1, 2 * tokens),
        )
        self._engine = BatchingEngine(base, limits)
        self._engine.generate([Request([5], adapter, ONCE) for adapter in adapters])

    def prefill(self, prompts: Sequence[Sequence[int]], adapters: Sequence[StoredLoraRequest | None]) -> None:
        """Gives every prompt its first token."""
        self._engine.generate(
            [Request(prompt, adapter, ONCE) for prompt, adapter in zip(prompts, adapters, strict=True)]
        )


def measure(
    base: Base, adapters: Sequence[StoredLoraRequest], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """One entry for each contender and number of prompts."""
    results = []
    engines = {
        (name, step): Engine(twin(base), own, max(options.prompts), options.tokens, step)
        for name, own in ((FRESH, []), (OURS, adapters))
        for step in sorted({STEP, options.tokens})
        if step <= options.tokens
    }
    model = load_peft(twin(base), adapters)
    batches: dict[str, Contender] = {
        BASE: StaticBatch(base.model),
        PEFT_ONE: StaticBatch(model),
        PEFT_SWITCHING: PeftSwitching(model),
        PEFT_MIXED: StaticBatch(model, mixed=True),
    }
    for count in options.prompts:
        progress(f"{count} prompts")
        chosen, none = list(adapters[:count]), [None] * count
        runs: dict[str, Callable[[], object]] = {BASE: partial(_start, batches[BASE], none, options)}
        for (name, step), engine in engines.items():
            runs[f"{name}, steps of {step}"] = partial(
                _prefill, engine, chosen if name == OURS else none, options
            )
        for name in (PEFT_ONE, PEFT_MIXED) if count == 1 else (PEFT_SWITCHING, PEFT_MIXED):
            runs[name] = partial(_start, batches[name], chosen, options)
        times = interleaved(runs, options)
        results += [
            {
                "prompts": count,
                "tokens of each": options.tokens // count,
                "contender": name,
                "milliseconds": 1000 * statistics.median(taken),
                "over base": ratio(taken, times[BASE]),
            }
            for name, taken in times.items()
        ]
    return results


def _start(
    batch: Contender, adapters: Sequence[StoredLoraRequest | None], options: argparse.Namespace
) -> None:
    batch.start(_prompts(len(adapters), options.tokens), adapters, 1)
    batch.stop()


def _prefill(
    engine: Engine, adapters: Sequence[StoredLoraRequest | None], options: argparse.Namespace
) -> None:
    engine.prefill(_prompts(len(adapters), options.tokens), adapters)


def _prompts(count: int, tokens: int) -> list[list[int]]:
    return [random.choices(range(3, VOCABULARY), k=tokens // count) for _ in range(count)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    commands = parser(__doc__)
    commands.add_argument("--tokens", type=int, default=2048, help="of all prompts together")
    commands.add_argument("--prompts", type=int, nargs="+", default=[1, 8])
    options = commands.parse_args(arguments)
    settle(options)
    random.seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        base = random_base(options, Path(scratch))
        adapters = random_adapters(options, base, max(options.prompts), Path(scratch))
        results = measure(base, adapters, options)
    titles = list(results[0])
    report(
        options, {"prefill": results}, lambda: table(titles, [[one[t] for t in titles] for one in results])
    )


if __name__ == "__main__":
    main()
