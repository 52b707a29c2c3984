"""What one decode step costs, over the same step of the bare base.

    python -m benchmarks.decode_step --threads 1 --pin 0 --shape 200m --quantization nf4

The bare base is a static batch in plain transformers. Ours is a whole step of the engine, sampling and text included:
with no adapter loaded, with all adapters loaded but none in the batch (idle), and with 1 to 32 different ones. PEFT
sets one adapter for all rows, or decodes the rows of each adapter one after the other (`set_adapter`), or mixes them
(`adapter_names`). transformers' continuous batching serves the bare base. llama.cpp runs where a GGUF file of the
same shape is given; it serves one adapter at a time and is measured on its base.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from adapterhub.base.loading import Base
from adapterhub.lora.request import StoredLoraRequest
from benchmarks.common import Times, interleaved, parser, random_adapters, random_base, ratio, report, settle
from benchmarks.contenders import (
    Contender,
    Ours,
    PeftSwitching,
    StaticBatch,
    TransformersContinuous,
    load_peft,
    twin,
)
from benchmarks.output import progress, table
from benchmarks.shapes import VOCABULARY

BASE, FRESH, IDLE, OURS = "base, static batch", "ours, none loaded", "ours, idle adapters", "ours"
PEFT_ONE, PEFT_SWITCHING, PEFT_MIXED = "PEFT set_adapter", "PEFT switching", "PEFT mixed batch"
ROWS = "ours, row by row"
GRAPHS = "ours, CUDA graphs"
ASYNC = "ours, CUDA graphs, asynchronous"
CONTINUOUS, LLAMA = "transformers continuous", "llama.cpp base"
WITH_ADAPTERS = (OURS, ROWS, GRAPHS, ASYNC, PEFT_ONE, PEFT_SWITCHING, PEFT_MIXED)


class OperationCount(TorchDispatchMode):
    """Counts the operations that PyTorch starts inside."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        return func(*args, **(kwargs or {}))


class Field:
    """All contenders on one base, and the batches that they are compared on."""

    def __init__(
        self, base: Base, adapters: Sequence[StoredLoraRequest], options: argparse.Namespace
    ) -> None:
        rows, self._adapters, self._options = max(options.rows), adapters, options
        peft = load_peft(twin(base), adapters)
        tokens = options.prompt + options.rounds + 4
        self._contenders: dict[str, Contender] = {
            BASE: StaticBatch(base.model),
            FRESH: Ours(twin(base), [], rows, tokens),
            IDLE: Ours(twin(base), adapters, rows, tokens),
            OURS: Ours(twin(base), adapters, rows, tokens),
            PEFT_ONE: StaticBatch(peft),
            PEFT_SWITCHING: PeftSwitching(peft),
            PEFT_MIXED: StaticBatch(peft, mixed=True),
        }
        if options.row_by_row:
            self._contenders[ROWS] = Ours(twin(base), adapters, rows, tokens, row_by_row=True)
        if options.cuda_graphs:
            for name in (GRAPHS, ASYNC):
                self._contenders[name] = Ours(
                    twin(base),
                    adapters,
                    rows,
                    tokens,
                    use_cuda_graph=True,
                    async_scheduling=name == ASYNC,
                )
        if not options.skip_continuous:
            self._contenders[CONTINUOUS] = TransformersContinuous(
                twin(base), rows, options.prompt + options.rounds + 2
            )
        if options.gguf:
            from benchmarks.llama_cpp import LlamaCpp

            self._contenders[LLAMA] = LlamaCpp(options.gguf, rows, options.prompt + options.rounds + 2)

    @property
    def names(self) -> list[str]:
        """Of the contenders."""
        return list(self._contenders)

    def run(self, names: Sequence[str], rows: int, distinct: int) -> Times:
        """Seconds of the contenders' steps, in alternation."""
        for name in names:
            self._start(name, rows, distinct)
        times = interleaved({name: self._contenders[name].step for name in names}, self._options)
        for name in names:
            self._contenders[name].stop()
        return times

    def operations(self, name: str, rows: int, distinct: int) -> int:
        """How many operations one step is made of."""
        contender = self._start(name, rows, distinct)
        contender.step()
        with OperationCount() as count:
            contender.step()
        contender.stop()
        return count.operations

    def _start(self, name: str, rows: int, distinct: int) -> Contender:
        prompts = [random.choices(range(3, VOCABULARY), k=self._options.prompt) for _ in range(rows)]
        adapters: list[StoredLoraRequest | None] = [None] * rows
        if name in WITH_ADAPTERS:
            adapters = [self._adapters[row % distinct] for row in range(rows)]
        self._contenders[name].start(prompts, adapters, self._options.rounds + 2)
        return self._contenders[name]


def measure(field: Field, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One entry for each contender, number of rows and number of different adapters."""
    results = []
    for rows in options.rows:
        for distinct in [count for count in options.adapters if count <= rows] or [1]:
            progress(f"{rows} rows, {distinct} adapters")
            # What does not depend on the number of adapters is measured once, but the base each time, to compare with.
            alone = [name for name in field.names if name not in WITH_ADAPTERS] if distinct == 1 else [BASE]
            with_adapters = [OURS, PEFT_ONE if distinct == 1 else PEFT_SWITCHING, PEFT_MIXED]
            with_adapters += [ROWS] if options.row_by_row else []
            with_adapters += [GRAPHS, ASYNC] if options.cuda_graphs else []
            times = field.run([*alone, *with_adapters], rows, distinct)
            results += [
                {
                    "rows": rows,
                    "adapters": distinct if name in WITH_ADAPTERS else 0,
                    "contender": name,
                    "milliseconds": 1000 * statistics.median(taken),
                    "over_base": ratio(taken, times[BASE]),
                    "over_none_loaded": ratio(taken, times[FRESH]) if FRESH in times else None,
                }
                for name, taken in times.items()
            ]
    return results


def count_operations(field: Field, options: argparse.Namespace) -> dict[str, dict[int, int]]:
    """Contender -> number of different adapters -> operations of one step with the maximum number of rows."""
    rows = min(max(options.rows), 16)
    counts = [count for count in (1, 2, 4, 8, 16) if count <= min(rows, max(options.adapters))]
    return {
        BASE: {0: field.operations(BASE, rows, 0)},
        FRESH: {0: field.operations(FRESH, rows, 0)},
        OURS: {count: field.operations(OURS, rows, count) for count in counts},
        PEFT_MIXED: {count: field.operations(PEFT_MIXED, rows, count) for count in counts},
    }


def show(
    results: list[dict[str, Any]], operations: dict[str, dict[int, int]], options: argparse.Namespace
) -> None:
    """Prints the tables."""
    for rows in options.rows:
        print(f"\n{rows} rows")
        own = [result for result in results if result["rows"] == rows]
        keys = ("contender", "adapters", "milliseconds", "over_base", "over_none_loaded")
        table(
            ["", "adapters", "ms", "over base", "over none loaded"],
            [[one[key] for key in keys] for one in own],
        )
    print("\noperations of a step")
    counts = list(operations[OURS])
    table(
        ["adapters", "none", *map(str, counts)],
        [[name, of.get(0), *map(of.get, counts)] for name, of in operations.items()],
    )
    if LLAMA not in {result["contender"] for result in results}:
        why = "no --gguf file" if find_spec("llama_cpp") else "llama-cpp-python is not installed"
        print(f"\nllama.cpp was not measured: {why}.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    commands = parser(__doc__)
    commands.add_argument("--rows", type=int, nargs="+", default=[1, 8, 16, 32])
    commands.add_argument("--adapters", type=int, nargs="+", default=[1, 4, 16, 32])
    commands.add_argument("--prompt", type=int, default=64, help="tokens before the first step")
    commands.add_argument(
        "--skip-continuous", action="store_true", help="leave out transformers' continuous batching"
    )
    commands.add_argument(
        "--row-by-row", action="store_true", help="as for a base that cannot be computed in packed steps, too"
    )
    commands.add_argument(
        "--cuda-graphs", action="store_true", help="the engine with CUDA graphs, also asynchronous, too"
    )
    commands.add_argument("--gguf", help="a file of the same shape for llama.cpp")
    options = commands.parse_args(arguments)
    settle(options)
    random.seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        base = random_base(options, Path(scratch))
        adapters = random_adapters(options, base, max(options.adapters), Path(scratch))
        field = Field(base, adapters, options)
        results, operations = measure(field, options), count_operations(field, options)
    report(options, {"steps": results, "operations": operations}, lambda: show(results, operations, options))


if __name__ == "__main__":
    main()
