"""What `batch_invariant` costs: a step and a prefill with it over those without, and the sizes of its blocks.

OMP_NUM_THREADS=1 python -m benchmarks.batch_invariance --shape 200m --clock cpu --rounds 8
OMP_NUM_THREADS=1 python -m benchmarks.batch_invariance --model SmolLM2-135M-Instruct --quantization none --clock cpu
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

from adapterhub.base.loading import load_base
from adapterhub.engine.runner import ScheduledSequence
from adapterhub.engine.runners.batch_invariant import BatchInvariantRunner
from adapterhub.engine.runners.packed import PackedRunner
from adapterhub.lora.delta import LoraDelta
from benchmarks.common import interleaved, parser, ratio, report, settle
from benchmarks.output import table
from benchmarks.proof import folder_of

ROWS = 16
PROMPT = 60
CACHE_BYTES = 1 << 30


def steps_of(runner: PackedRunner, prefill: int) -> dict[str, Callable[[], object]]:
    """What is timed of a runner with an adapter in each of its slots: name -> what computes it."""
    cache, _ = runner.make_caches(CACHE_BYTES)
    *slots, long = (cache.allocate(tokens) or _no_room() for tokens in (*[2 * PROMPT] * ROWS, prefill))
    runner.step([ScheduledSequence(slot, list(range(PROMPT)), None, True) for slot in slots])

    def decode(rows: int, *, adapted: bool) -> None:
        for slot in slots:
            slot.length = PROMPT
        runner.step(
            [
                ScheduledSequence(slot, [5], n if adapted else None, True)
                for n, slot in enumerate(slots[:rows])
            ]
        )

    def compute_prompt() -> None:
        long.length = 0
        runner.step([ScheduledSequence(long, [n % 250 for n in range(prefill)], None, True)])

    return {
        "1 row": lambda: decode(1, adapted=False),
        "1 row, 1 adapter": lambda: decode(1, adapted=True),
        f"{ROWS} rows": lambda: decode(ROWS, adapted=False),
        f"{ROWS} rows, {ROWS} adapters": lambda: decode(ROWS, adapted=True),
        f"prefill of {prefill} tokens": compute_prompt,
    }


def _no_room() -> NoReturn:
    raise SystemExit("The prompt does not fit the cache.")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Times both runners in turn, each on a base of its own."""
    steps: dict[str, dict[str, Callable[[], object]]] = {}
    sizes: Sequence[int] = ()
    for name, kind in (("as it is", PackedRunner), ("batch invariant", BatchInvariantRunner)):
        quantization = None if options.quantization == "none" else options.quantization
        base = load_base(
            folder, quantization=quantization, compute_dtype=options.compute_dtype, device=options.device
        )
        shapes = {one: s for one, s in base.linear_layers.shapes.items() if one != base.linear_layers.head}
        runner = kind(base, max_loras=ROWS)
        random = torch.Generator().manual_seed(0)
        for slot in range(ROWS):
            runner.load_adapter(
                slot,
                {
                    layer: LoraDelta(
                        torch.randn(options.rank, width, generator=random),
                        0.01 * torch.randn(out, options.rank, generator=random),
                    )
                    for layer, (out, width) in shapes.items()
                },
            )
        sizes = getattr(runner, "sizes", sizes)
        steps[name] = steps_of(runner, options.prefill)
    rows = []
    for what in steps["as it is"]:
        times = interleaved({name: of_runner[what] for name, of_runner in steps.items()}, options)
        plain, invariant = times["as it is"], times["batch invariant"]
        rows.append(
            (
                what,
                *(1000 * statistics.median(taken) for taken in (plain, invariant)),
                ratio(invariant, plain),
            )
        )
    return {"sizes": sizes, "steps": rows}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    given = parser(__doc__, rounds=8)
    given.add_argument("--model", metavar="FOLDER", help="a base, in place of a random one of a shape")
    given.add_argument("--compute-dtype", default="auto")
    given.add_argument("--prefill", type=int, default=512, help="tokens of the prompt")
    options = given.parse_args(arguments)
    settle(options)
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(options, folder_of(options, Path(scratch)))

    def show() -> None:
        print(f"blocks of {', '.join(map(str, found['sizes']))} tokens")
        table(("milliseconds", "as it is", "batch invariant", "ratio"), found["steps"])

    report(options, found, show)


if __name__ == "__main__":
    main()
