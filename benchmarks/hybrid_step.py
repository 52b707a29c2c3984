"""What a decode step of a hybrid base costs: packed, with states in the KV slots, against row by row.

    python -m benchmarks.hybrid_step --threads 1 --rows 1 4 16

The base is a random Qwen3.5: three layers of a gated delta net, then one of attention, and so on. Weights are random:
the time of a step does not depend on them. It is this process's own time, so that other programs count less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from adapterhub.base.loading import load_base
from adapterhub.engine.runner import ScheduledSequence, ScoringRunner
from adapterhub.engine.runners.packed import PackedRunner
from adapterhub.engine.runners.row_by_row import RowRunner
from benchmarks.shapes import CONTEXT, VOCABULARY, write_tokenizer

RUNNERS: tuple[type[PackedRunner] | type[RowRunner], ...] = (PackedRunner, RowRunner)
_PROMPT = 64
_CACHE_BYTES = 1 << 32


def write_hybrid(folder: Path, width: int, layers: int) -> None:
    """Writes a random Qwen3.5 with a tokenizer of made-up words."""
    heads = {"linear_num_key_heads": width // 64, "linear_num_value_heads": width // 64}
    config = AutoConfig.for_model(
        "qwen3_5_text",
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 256),
        head_dim=64,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        **heads,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    write_tokenizer(folder)


def decode_step(runner: ScoringRunner, rows: int, rounds: int) -> float:
    """Median milliseconds of a step of some sequences, after a prompt."""
    cache, _ = runner.make_caches(_CACHE_BYTES)
    slots = [cache.allocate(_PROMPT + rounds) for _ in range(rows)]
    runner.step([ScheduledSequence(slot, [5] * _PROMPT, None, needs_logits=True) for slot in slots])
    times = []
    for _ in range(rounds):
        started = time.process_time()
        runner.step([ScheduledSequence(slot, [5], None, needs_logits=True) for slot in slots])
        times.append(time.process_time() - started)
    return 1000 * statistics.median(times[1:])


def measure(width: int, layers: int, rows: Sequence[int], rounds: int) -> dict[str, dict[int, float]]:
    """Milliseconds of a step: runner -> rows -> time."""
    with tempfile.TemporaryDirectory() as folder:
        write_hybrid(Path(folder), width, layers)
        return {
            kind.name: {count: decode_step(runner, count, rounds) for count in rows}
            for kind in RUNNERS
            for runner in [kind(load_base(folder, device="cpu"), max_loras=1)]
        }


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=12, help="the first is dropped")
    parser.add_argument("--threads", type=int, help="of torch; as it is if not given")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    if options.threads:
        torch.set_num_threads(options.threads)
    times = measure(options.width, options.layers, options.rows, options.rounds)
    if options.json:
        print(json.dumps({"threads": torch.get_num_threads(), "milliseconds": times}, indent=2))
        return
    print(f"{'rows':>6}" + "".join(f"{name:>14}" for name in times))
    for count in options.rows:
        print(f"{count:>6}" + "".join(f"{of_rows[count]:>11.1f} ms" for of_rows in times.values()))


if __name__ == "__main__":
    main()
