"""The compiled product with packed 4-bit weights over bitsandbytes' own, for single layers and for whole steps.

    python -m benchmarks.packed_products --shape smollm2 --threads 1 --clock cpu

Both are taken in turn in one process, on the same weights, and give the same bits. A layer is timed on the weights of
all layers of its size, one after the other, so that they come from where a step finds them. A step is one of the
engine, without adapters.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch

from adapterhub.base import packed_linear
from adapterhub.base.loading import Base
from adapterhub.base.packed_linear import PackedLinear4bit
from benchmarks.common import interleaved, parser, random_base, ratio, report, settle
from benchmarks.contenders import Ours, twin
from benchmarks.output import progress, table

OWN, BITSANDBYTES = "compiled", "bitsandbytes"
PROMPT = 32
Comparison = tuple[str, int, float, float, float]


@contextmanager
def by_bitsandbytes() -> Iterator[None]:
    """Within it, packed layers are multiplied as where nothing can be compiled."""
    with patch.object(packed_linear, "compiled_products", dict):
        yield


def compare(what: str, rows: int, do: Callable[[], object], options: argparse.Namespace) -> Comparison:
    """What is timed, tokens, milliseconds of both, and their ratio."""
    progress(f"{what}, {rows} tokens")
    times = interleaved({OWN: do, BITSANDBYTES: by_bitsandbytes()(do)}, options)
    milliseconds = (1000 * statistics.median(times[name]) for name in (OWN, BITSANDBYTES))
    return what, rows, *milliseconds, ratio(times[OWN], times[BITSANDBYTES])


def layers_by_size(base: Base) -> Mapping[str, Sequence[PackedLinear4bit]]:
    """Size in words -> the packed layers that have it."""
    found: dict[str, list[PackedLinear4bit]] = {}
    for layer in base.model.modules():
        if isinstance(layer, PackedLinear4bit):
            found.setdefault(f"{layer.out_features} x {layer.in_features}", []).append(layer)
    return found


@torch.inference_mode()
def measure_layers(base: Base, options: argparse.Namespace) -> list[Comparison]:
    """All layers of each size."""
    found = []
    for size, layers in layers_by_size(base).items():
        for rows in options.rows:
            x = torch.randn(rows, layers[0].in_features, dtype=base.compute_dtype)

            def multiply(layers: Sequence[PackedLinear4bit] = layers, x: torch.Tensor = x) -> None:
                for layer in layers:
                    layer.multiply_packed(x)

            found.append(compare(f"{len(layers)} layers of {size}", rows, multiply, options))
    return found


def measure_steps(base: Base, options: argparse.Namespace) -> list[Comparison]:
    """A whole step of the engine."""
    tokens, found = 2 * options.rounds + 4, []
    engine = Ours(twin(base), [], max(options.rows), PROMPT + tokens)
    for rows in options.rows:
        prompts = [random.choices(range(3, base.vocabulary_size), k=PROMPT) for _ in range(rows)]
        engine.start(prompts, [None] * rows, tokens)
        found.append(compare("step", rows, engine.step, options))
        engine.stop()
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    given = parser(__doc__, shape="smollm2", rounds=20)
    given.add_argument("--rows", type=int, nargs="+", default=[1, 16], help="tokens of a step")
    options = given.parse_args(arguments)
    settle(options)
    random.seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        base = random_base(options, Path(scratch))
        base.model(torch.tensor([[3]]))  # packs the weights
        results = measure_layers(base, options) + measure_steps(base, options)
    titles = ("milliseconds", "tokens", OWN, BITSANDBYTES, "ratio")
    report(options, {"packed_products": results}, lambda: table(titles, results))


if __name__ == "__main__":
    main()
