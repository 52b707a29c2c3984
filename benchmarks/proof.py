"""The proof of a base: how much rounding it sees, what a wrong adapter would show, and what it costs.

    OMP_NUM_THREADS=2 python -m benchmarks.proof --shape 1.1b --base bases
    python -m benchmarks.proof --model SmolLM2-135M-Instruct --quantization none --compute-dtype bfloat16

The bounds in `adapterhub.engine.runners.proof` are above all differences found so, and below what defects show.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapterhub.base.loading import Base, load_base
from adapterhub.engine.runners.choosing import make_runner
from adapterhub.engine.runners.packed import PackedRunner
from adapterhub.engine.runners.proof import compute_reference, largest_difference, rounding_bound
from benchmarks.common import parser, report, settle
from benchmarks.output import progress, table
from benchmarks.shapes import write_base

SLOTS = 16


def folder_of(options: argparse.Namespace, scratch: Path) -> Path:
    """The base's folder; a random one is written if none is named."""
    if options.model:
        return Path(options.model)
    folder: Path = Path(options.base or scratch) / options.shape
    if not (folder / "tokenizer.json").exists():  # which is written last
        progress(f"writing a random base of shape {options.shape}")
        write_base(folder, options.shape, options.device)
    return folder


def differences(base: Base, seeds: int) -> list[tuple[float, float]]:
    """For each of some prompts and adapters: the difference as it is, and if the adapter had no effect."""
    references = [compute_reference(base, seed=seed) for seed in range(seeds)]
    base.claim()
    runner = PackedRunner(base, max_loras=SLOTS)
    found = []
    for reference in references:
        without = replace(reference, deltas={})
        found.append(
            (
                largest_difference(runner, reference, SLOTS - 1),
                largest_difference(runner, without, SLOTS - 1),
            )
        )
    return found


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Loads the base once without the proof, once with it, and once for its differences."""

    def load() -> Base:
        quantization = None if options.quantization == "none" else options.quantization
        return load_base(
            folder, quantization=quantization, compute_dtype=options.compute_dtype, device=options.device
        )

    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {"load": [], "without": [], "with": []}
    for number in range(options.rounds):
        for name in ("without", "with"):
            started = clock()
            base = load()
            loaded = clock()
            runner = make_runner(base, max_loras=SLOTS, prove_base=name == "with")
            made = clock()
            if number or options.rounds == 1:
                seconds["load"].append(loaded - started)
                seconds[name].append(made - loaded)
            bound, kind = rounding_bound(base), runner.name
            del base, runner
    best = {name: min(times) for name, times in seconds.items()}
    found = differences(load(), options.seeds)
    return {
        "runner": kind,
        "seconds": best,
        "share": (best["with"] - best["without"]) / best["load"],
        "bound": bound,
        "differences": [difference for difference, _ in found],
        "without_the_adapter": [difference for _, difference in found],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    given = parser(__doc__, rounds=2)
    given.add_argument("--model", metavar="FOLDER", help="a base, in place of a random one of a shape")
    given.add_argument("--compute-dtype", default="auto")
    given.add_argument("--seeds", type=int, default=8, help="prompts and adapters")
    for action in given._actions:
        if action.dest == "quantization":
            action.choices = ["nf4", "fp4", "int8", "none"]
    options = given.parse_args(arguments)
    settle(options)
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(options, folder_of(options, Path(scratch)))

    def show() -> None:
        seconds = found["seconds"]
        print(
            f"{found['runner']}; load {seconds['load']:.2f} s, runner {seconds['without']:.2f} s, "
            f"proved {seconds['with']:.2f} s: {100 * found['share']:.1f} % of the load"
        )
        rows = [
            ("as it is", min(found["differences"]), max(found["differences"])),
            ("adapter without effect", min(found["without_the_adapter"]), max(found["without_the_adapter"])),
            ("bound", found["bound"], found["bound"]),
        ]
        table(("logits differ by", "least", "most"), rows)

    report(options, found, show)


if __name__ == "__main__":
    main()
