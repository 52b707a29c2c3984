"""What a merge costs: `merge_adapter` against PEFT's load, `merge_and_unload` and save, on the same files.

    OMP_NUM_THREADS=1 python -m benchmarks.merge --shape 1.1b

Each contender runs in its own process, since a process does not return memory to the system; they alternate.
Memory is the peak of anonymous memory (without mapped files) above that of the imports. Both write the same dtype, and
every tensor is compared bit by bit. `--exact` also merges into the NF4 weights that QLoRA trains on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

from benchmarks.common import PeakMemory
from benchmarks.shapes import SHAPES, write_base

CONTENDERS = ("adapterhub", "peft")
EXACT = "adapterhub --exact"


def write_adapter(base: Path, out: Path) -> None:
    """Writes a random rank-16 adapter for all linear layers of a base."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    config = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(out, save_embedding_layers=False)


def run(contender: str, base: Path, adapter: Path, out: Path) -> dict[str, float]:
    """Merges once in this process, watching its memory."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from adapterhub.export import RoundTrip, merge_adapter

    with PeakMemory() as memory:
        started, cpu = time.perf_counter(), time.process_time()
        if contender in ("adapterhub", EXACT):
            merge_adapter(
                base, adapter, out, exact=RoundTrip() if contender == EXACT else False, verify=False
            )
        else:
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
            PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
        took = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    return {"memory_mib": memory.peak_mib - memory.before_mib, **took}


def equal_weights(one: Path, other: Path) -> int:
    """The number of tensors in two models, all of them equal bit by bit; SystemExit names one that is not."""
    import torch
    from safetensors import safe_open

    tensors = 0
    for file in sorted(one.glob("*.safetensors")):
        with safe_open(file, "pt") as ours, safe_open(other / file.name, "pt") as theirs:
            for name in {*ours.keys(), *theirs.keys()}:
                tensors += 1
                if not torch.equal(ours.get_tensor(name), theirs.get_tensor(name)):
                    raise SystemExit(f"{name} differs")
    return tensors


def measure(shape: str, rounds: int, contenders: tuple[str, ...]) -> dict[str, list[dict[str, float]]]:
    """Contender -> one result a round."""
    results: dict[str, list[dict[str, float]]] = {contender: [] for contender in contenders}
    with tempfile.TemporaryDirectory() as scratch:
        base, adapter = write_base(Path(scratch) / "base", shape), Path(scratch) / "adapter"
        write_adapter(base, adapter)
        for _ in range(rounds):
            for contender in contenders:
                out = Path(scratch) / contender
                shutil.rmtree(out, ignore_errors=True)
                paths = map(str, (base, adapter, out))
                command = [sys.executable, "-m", "benchmarks.merge", "--run", contender, *paths]
                done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
                results[contender].append(json.loads(done.stdout.splitlines()[-1]))
            tensors = equal_weights(Path(scratch) / CONTENDERS[0], Path(scratch) / CONTENDERS[1])
            print(f"all {tensors} tensors are those of PEFT, bit by bit", file=sys.stderr)
    return results


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="1.1b")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.run:
        contender, *paths = options.run
        print(json.dumps(run(contender, *map(Path, paths))))
        return
    results = measure(options.shape, options.rounds, (*CONTENDERS, *([EXACT] if options.exact else [])))
    if options.json:
        print(json.dumps({"shape": options.shape, "results": results}, indent=2))
        return
    print(f"{'':>18}{'memory':>14}{'time':>10}{'CPU time':>10}")
    for contender, rounds in results.items():
        for one in rounds:
            print(
                f"{contender:>18}{one['memory_mib']:>10.0f} MiB{one['seconds']:>8.1f} s{one['cpu_seconds']:>8.1f} s"
            )
    ours, pefts = (sum(one["cpu_seconds"] for one in results[name]) for name in CONTENDERS)
    print(f"CPU time of adapterhub over that of PEFT: {ours / pefts:.2f}")


if __name__ == "__main__":
    main()
