"""Service times of this library's engine: steps by rows and adapters, prompts, and loading an adapter.

    python -m benchmarks.fleet_simulation.measuring --demo --threads 1 --clock cpu --write demo
    python -m benchmarks.fleet_simulation.measuring --shape 200m --threads 1 --clock cpu --rounds 6 --write 200m

Medians of rounds, by this process's own time with `--clock cpu`, so that other programs on the machine add little. The
steps are fitted by least squares; how far the fit is off is recorded beside it.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adapterhub.base.loading import Base, load_base
from adapterhub.demo import demo_registry_folder
from adapterhub.lora.request import StoredLoraRequest
from adapterhub.peft_format.config import CONFIG_FILE
from benchmarks.adapter_load import IntoSlot
from benchmarks.common import machine, parser, random_adapters, random_base, settle, timed, twins
from benchmarks.contenders import Ours, twin
from benchmarks.fleet_simulation.service_times import Measured, ServiceTimes, fit, record
from benchmarks.output import progress

PROMPTS = (32, 288)
"""Two lengths of a prompt, whose difference is what more tokens cost."""


def measure(options: argparse.Namespace, scratch: Path) -> tuple[ServiceTimes, dict[str, Any]]:
    """The service times of an engine, and how well they fit what was measured."""
    random.seed(0)
    base, adapters = _subject(options, scratch)
    with_lora = _steps(base, adapters, options)
    bare = _steps(base, [], options)
    (step, row, adapter), off = fit(with_lora)
    (base_step, base_row, _), _ = fit(bare)
    slot_load, disk_load = _loads(base, adapters[0], options)
    times = ServiceTimes(
        step=step,
        row=row,
        adapter=adapter,
        prefill_token=_prefill_token(base, adapters, options),
        slot_load=slot_load,
        disk_load=disk_load,
        base_step=base_step,
        base_row=base_row,
    )
    steps = {f"{rows} rows, {count} adapters": 1000 * taken for (rows, count), taken in with_lora.items()}
    return times, {"steps_ms": {name: round(taken, 3) for name, taken in steps.items()}, "fit_off": off}


def _subject(options: argparse.Namespace, scratch: Path) -> tuple[Base, list[StoredLoraRequest]]:
    if not options.demo:
        base = random_base(options, scratch)
        return base, random_adapters(options, base, max(options.rows), scratch)
    shipped = [file.parent for file in sorted(demo_registry_folder().glob(f"*/*/{CONFIG_FILE}"))]
    return load_base("adapterhub-demo", device="cpu"), twins(shipped, max(options.rows), scratch / "twins")


def _prompt(base: Base, tokens: int) -> list[int]:
    return random.choices(range(3, base.vocabulary_size), k=tokens)


def _steps(base: Base, adapters: Sequence[StoredLoraRequest], options: argparse.Namespace) -> Measured:
    engine, found = Ours(twin(base), adapters, max(options.rows), PROMPTS[0] + options.rounds + 4), Measured()
    for rows in options.rows:
        for count in sorted({1, max(1, rows // 4), rows}) if adapters else [0]:
            progress(f"{rows} rows, {count} adapters")
            chosen = [adapters[row % count] if adapters else None for row in range(rows)]
            engine.start([_prompt(base, PROMPTS[0]) for _ in range(rows)], chosen, options.rounds + 2)
            taken = [timed(engine.step, options) for _ in range(options.rounds)][1:]
            engine.stop()
            found[rows, count] = statistics.median(taken)
    return found


def _prefill_token(base: Base, adapters: Sequence[StoredLoraRequest], options: argparse.Namespace) -> float:
    progress("prompts")
    engine = Ours(twin(base), adapters, 1, max(PROMPTS) + 4)
    short, long = (
        statistics.median(_prefills(engine, base, adapters[0], tokens, options)) for tokens in PROMPTS
    )
    return max(0.0, long - short) / (PROMPTS[1] - PROMPTS[0])


def _prefills(
    engine: Ours, base: Base, adapter: StoredLoraRequest, tokens: int, options: argparse.Namespace
) -> list[float]:
    taken = []
    for _ in range(options.rounds):
        prompt = _prompt(base, tokens)
        taken.append(timed(lambda prompt=prompt: engine.start([prompt], [adapter], 2), options))  # type: ignore[misc]
        engine.stop()
    return taken[1:]


def _loads(base: Base, adapter: StoredLoraRequest, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds from host memory to slot, and from disk, in the page cache, to host memory."""
    progress("loads")
    into_slot, slot, disk = IntoSlot(twin(base), adapter), list[float](), list[float]()
    for _ in range(options.rounds):
        disk.append(timed(into_slot.read, options))
        slot.append(timed(into_slot.fill, options))
        into_slot.evict()
    return statistics.median(slot[1:]), statistics.median(disk[1:])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and records."""
    commands = parser(__doc__)
    commands.add_argument("--demo", action="store_true", help="the demo's base and adapters, not a shape")
    commands.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 32])
    commands.add_argument("--write", metavar="NAME", help="record the times under this name")
    options = commands.parse_args(arguments)
    settle(options)
    with tempfile.TemporaryDirectory() as scratch:
        times, fitted = measure(options, Path(scratch))
    where = machine(options.device)
    told = ("processor", "instructions", "threads", "load", "versions")
    about = {
        "what": "adapterhub-demo" if options.demo else f"random base of shape {options.shape}",
        "quantization": options.quantization,
        "clock": options.clock,
        "machine": {key: where[key] for key in told},
        **fitted,
    }
    if options.write:
        record(options.write, times, about)
    print(json.dumps({"about": about, "times": asdict(times)}, indent=2))


if __name__ == "__main__":
    main()
