"""Which dtype should a 4-bit base compute in? One decode step, bfloat16 against float32, alternating in one process.

    OMP_NUM_THREADS=1 python -m benchmarks.compute_dtype --shape 200m --json

torch and bitsandbytes each bring an OpenMP runtime, so the number of threads is set from outside, for both.
Weights are random: the time of a step does not depend on them. `load_base(compute_dtype="auto")` follows the result.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from transformers import DynamicCache
from transformers.utils import logging

from adapterhub.base.loading import Base, load_base
from benchmarks.shapes import SHAPES, write_base

DTYPES = ("bfloat16", "float32")


def decode_step(base: Base, rows: int, prompt: int) -> float:
    """Seconds of one decode step after a prompt."""
    cache = DynamicCache(config=base.model.config)
    with torch.inference_mode():
        base.model(
            input_ids=torch.ones(rows, prompt, dtype=torch.long), past_key_values=cache, logits_to_keep=1
        )
        started = time.perf_counter()
        base.model(input_ids=torch.ones(rows, 1, dtype=torch.long), past_key_values=cache)
        return time.perf_counter() - started


def measure(shape: str, rows: list[int], rounds: int, prompt: int) -> dict[str, dict[int, float]]:
    """Median milliseconds of a step: dtype -> rows -> time."""
    with tempfile.TemporaryDirectory() as folder:
        write_base(Path(folder), shape)
        bases = {dtype: load_base(folder, compute_dtype=dtype, device="cpu") for dtype in DTYPES}
        times: dict[tuple[str, int], list[float]] = {}
        for _ in range(rounds):
            for count in rows:
                for dtype, base in bases.items():
                    times.setdefault((dtype, count), []).append(decode_step(base, count, prompt))
    return {
        dtype: {count: 1000 * statistics.median(times[dtype, count][1:]) for count in rows}
        for dtype in DTYPES
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="200m")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--prompt", type=int, default=64, help="tokens before the step")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.disable_progress_bar()
    times = measure(options.shape, options.rows, options.rounds, options.prompt)
    if options.json:
        print(
            json.dumps(
                {"shape": options.shape, "threads": torch.get_num_threads(), "milliseconds": times}, indent=2
            )
        )
        return
    print(f"{'rows':>6}" + "".join(f"{dtype:>12}" for dtype in DTYPES))
    for count in options.rows:
        print(f"{count:>6}" + "".join(f"{times[dtype][count]:>9.1f} ms" for dtype in DTYPES))


if __name__ == "__main__":
    main()
