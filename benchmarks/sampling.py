"""The cost of sampling one token, against transformers' own logits processors followed by `torch.multinomial`.

    python -m benchmarks.sampling --threads 1 --clock cpu

The logits are normally distributed with a standard deviation of 3. Every row of every step samples once.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from adapterhub import SamplingParams
from adapterhub.engine.decoding.sampler import Logits, Sampler
from benchmarks.common import interleaved, machine, ratio, settle
from benchmarks.output import progress, table

SETTINGS: dict[str, dict[str, Any]] = {
    "temperature": {},
    "top_k 50": {"top_k": 50},
    "top_p 0.9": {"top_p": 0.9},
}
TEMPERATURE, LOGIT_STD, DRAWS = 0.8, 3.0, 10


def ours(values: torch.Tensor, settings: dict[str, Any]) -> Callable[[], object]:
    """The engine's sampler."""
    sampler = Sampler(SamplingParams(temperature=TEMPERATURE, seed=0, **settings), 0, torch.device("cpu"))
    (logits,) = Logits.of(values)
    return lambda: [sampler.draw(logits) for _ in range(DRAWS)]


def transformers_sampling(values: torch.Tensor, settings: dict[str, Any]) -> Callable[[], object]:
    """The sampling of transformers' `generate`."""
    chain = LogitsProcessorList([TemperatureLogitsWarper(TEMPERATURE)])
    if "top_k" in settings:
        chain.append(TopKLogitsWarper(settings["top_k"]))
    if "top_p" in settings:
        chain.append(TopPLogitsWarper(settings["top_p"]))
    generator = torch.Generator().manual_seed(0)

    def draw() -> int:
        return int(torch.multinomial(chain(None, values).softmax(-1), 1, generator=generator))

    return lambda: [draw() for _ in range(DRAWS)]


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Microseconds a token for each size and setting."""
    rows = []
    for size in options.vocabulary:
        progress(f"{size:,} tokens")
        values = LOGIT_STD * torch.randn(1, size, generator=torch.Generator().manual_seed(0))
        for name, settings in SETTINGS.items():
            contenders = {
                "ours": ours(values, settings),
                "transformers": transformers_sampling(values, settings),
            }
            times = interleaved(contenders, options)
            micros = {who: 1e6 * statistics.median(taken) / DRAWS for who, taken in times.items()}
            share = ratio(times["ours"], times["transformers"])
            rows.append({"vocabulary": size, "settings": name, **micros, "ratio": share})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[3072, 32000, 128000], metavar="TOKENS")
    parser.add_argument("--rounds", type=int, default=30, help="the first is dropped")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--pin", type=int, nargs="+", metavar="CORE", help="run on these cores only (Linux)")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(device="cpu")
    options = parser.parse_args(arguments)
    settle(options)
    rows = measure(options)
    if options.json:
        print(json.dumps({"options": vars(options), "machine": machine("cpu"), "draws": rows}, indent=2))
        return
    titles = ("tokens", "settings", "ours, us", "transformers, us", "ratio")
    table(titles, [[f"{row['vocabulary']:,}", *list(row.values())[1:]] for row in rows])


if __name__ == "__main__":
    main()
