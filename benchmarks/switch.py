"""What switching the adapter costs: `AdapterHub.set_adapter` against PEFT's `set_adapter`, in turn in one process.

    OMP_NUM_THREADS=1 python -m benchmarks.switch --shape 200m --adapters 1 8 32

A random 4-bit base with random rank-8 adapters on all seven projections; the time does not depend on the weights.
PEFT walks every layer and every loaded adapter; the hub sets one context variable.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model
from transformers.utils import logging

from adapterhub import AdapterHub, AdapterRegistry, EchoEngine, load_base
from benchmarks.shapes import SHAPES, write_base

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def median_microseconds(switch: Callable[[str], None], names: list[str], rounds: int) -> float:
    """Median time of one switch, going round the names."""
    times = []
    for turn in range(rounds):
        started = time.perf_counter()
        switch(names[turn % len(names)])
        times.append(time.perf_counter() - started)
    return 1e6 * statistics.median(times)


def measure(shape: str, counts: list[int], rounds: int) -> dict[int, dict[str, float]]:
    """Number of adapters -> contender -> microseconds."""
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        base = load_base(write_base(Path(scratch) / "base", shape), device="cpu")
        config = LoraConfig(r=8, target_modules=TARGETS, inference_mode=True)
        model: PeftModel = get_peft_model(base.model, config, adapter_name="a0", autocast_adapter_dtype=False)
        folder = Path(scratch) / "adapter"
        model.save_pretrained(folder, save_embedding_layers=False)
        registry, loaded = AdapterRegistry(Path(scratch) / "registry"), 0
        hub = AdapterHub(registry, EchoEngine())  # the engine has no part in a switch
        for count in sorted(counts):
            for number in range(loaded, count):
                registry.register(folder / "a0", f"a{number}")  # PEFT names the folder after the adapter
                if number:
                    model.add_adapter(f"a{number}", config, autocast_adapter_dtype=False)
            loaded, names = count, [f"a{number}" for number in range(count)]
            for name in names:
                hub.set_adapter(name)
            contenders = {"adapterhub": hub.set_adapter, "peft": model.set_adapter}
            results[count] = {who: median_microseconds(fn, names, rounds) for who, fn in contenders.items()}
    return results


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="200m")
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    results = measure(options.shape, options.adapters, options.rounds)
    if options.json:
        print(json.dumps({"shape": options.shape, "microseconds": results}, indent=2))
        return
    print(f"{'adapters':>9}{'adapterhub':>15}{'peft':>15}")
    for count, times in results.items():
        print(f"{count:>9}" + "".join(f"{times[who]:>12.1f} us" for who in ("adapterhub", "peft")))


if __name__ == "__main__":
    main()
