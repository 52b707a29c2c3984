"""Ratios of times in one process, compared with those recorded for this kind of processor: `make bench`.

    python -m benchmarks.ratios             # fails where one is worse than the recorded one by more than noise
    python -m benchmarks.ratios --record    # writes them into benchmarks/recorded.json

Times differ between machines and hours, ratios of times that were taken in turn hardly do. A step of the engine is
measured over transformers' static batch, and a step with adapters over one without, in float32, in bfloat16 where the
processor multiplies it, and as bases are loaded by default. What is too high is measured again before it counts, and
the best of three counts. How far the repetitions of a recording are apart is its noise.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adapterhub.base.loading import Base, load_base
from adapterhub.lora.request import StoredLoraRequest
from benchmarks.common import base_folder, interleaved, machine, parser, random_adapters, ratio, settle
from benchmarks.contenders import Contender, Ours, StaticBatch, twin
from benchmarks.output import progress, table
from benchmarks.prefill import Engine

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "float32": {"quantization": None, "compute_dtype": "float32"},
    "bfloat16": {"quantization": None, "compute_dtype": "bfloat16"},
    "default": {},
}
BASE, NONE, ADAPTERS = "transformers", "no adapter", "adapters"
ROWS, PROMPT, PREFILL = 16, 32, 512
ATTEMPTS, LEAST_NOISE = 3, 0.05
RECORDED = Path(__file__).with_name("recorded.json")
Ratios = dict[str, float]
"""Measure -> ratio."""
MeasureSetting = Callable[[str], Ratios]


@dataclass(frozen=True)
class Recorded:
    """A ratio on one kind of processor.

    Attributes:
        ratio: The median of some repetitions.
        noise: By how much of it the one furthest from it differs.
    """

    ratio: float
    noise: float

    @classmethod
    def of(cls, repeated: Sequence[float]) -> Recorded:
        """The ratio of some repetitions."""
        middle = statistics.median(repeated)
        return cls(round(middle, 3), round(max(abs(one / middle - 1) for one in repeated), 3))

    @property
    def limit(self) -> float:
        """The highest ratio that noise explains."""
        return self.ratio * (1 + max(LEAST_NOISE, 2 * self.noise))


def kind(threads: int) -> str:
    """What has figures of its own: the processor's best instructions, and the number of threads."""
    instructions = machine("cpu")["instructions"]
    best = instructions[-1] if instructions else "plain"
    return f"{platform.machine()} {best}, threads {threads}"


def measure(setting: str, folder: Path, options: argparse.Namespace) -> Ratios:
    """Measure -> ratio, with the base loaded in one of `SETTINGS`."""
    progress(setting)
    base = load_base(folder, device="cpu", **SETTINGS[setting])
    with tempfile.TemporaryDirectory() as scratch:
        adapters = random_adapters(options, base, ROWS, Path(scratch))
        found = _decoding(base, adapters, options) | _prefill(base, options)
    return {f"{setting}, {name}": value for name, value in found.items()}


def _decoding(base: Base, adapters: Sequence[StoredLoraRequest], options: argparse.Namespace) -> Ratios:
    tokens = PROMPT + options.rounds + 4
    contenders: dict[str, Contender] = {
        BASE: StaticBatch(base.model),
        NONE: Ours(twin(base), [], ROWS, tokens),
        ADAPTERS: Ours(twin(base), adapters, ROWS, tokens),
    }
    found = {}
    for rows in (1, ROWS):
        for name, contender in contenders.items():
            chosen = list(adapters[:rows]) if name == ADAPTERS else [None] * rows
            contender.start(_prompts(base, rows, PROMPT), chosen, options.rounds + 2)
        times = interleaved({name: contender.step for name, contender in contenders.items()}, options)
        for contender in contenders.values():
            contender.stop()
        found[f"{rows} rows over transformers"] = ratio(times[NONE], times[BASE])
        found[f"{rows} rows with {rows} adapters over none"] = ratio(times[ADAPTERS], times[NONE])
    return found


def _prefill(base: Base, options: argparse.Namespace) -> Ratios:
    engine, batch = Engine(twin(base), [], 1, PREFILL, PREFILL), StaticBatch(base.model)

    def plain() -> None:
        batch.start(_prompts(base, 1, PREFILL), [None], 0)
        batch.stop()

    def ours() -> None:
        engine.prefill(_prompts(base, 1, PREFILL), [None])

    few = argparse.Namespace(**{**vars(options), "rounds": max(2, options.rounds // 3)})
    times = interleaved({BASE: plain, NONE: ours}, few)
    return {f"prefill of {PREFILL} over transformers": ratio(times[NONE], times[BASE])}


def _prompts(base: Base, rows: int, tokens: int) -> list[list[int]]:
    return [random.choices(range(3, base.vocabulary_size), k=tokens) for _ in range(rows)]


def worse(found: Mapping[str, float], recorded: Mapping[str, Recorded]) -> list[str]:
    """The measures whose ratio is above what was recorded by more than noise."""
    return [name for name, value in found.items() if name in recorded and value > recorded[name].limit]


def best_of(attempts: Sequence[Mapping[str, float]]) -> Ratios:
    """The lowest ratio of each measure."""
    return {name: min(one[name] for one in attempts if name in one) for name in attempts[0]}


def check(
    measure_setting: MeasureSetting, settings: Sequence[str], recorded: Mapping[str, Recorded]
) -> Ratios:
    """The ratios, where what is too high was measured again."""
    found: Ratios = {}
    for setting in settings:
        attempts = [measure_setting(setting)]
        while worse(best_of(attempts), recorded) and len(attempts) < ATTEMPTS:
            attempts.append(measure_setting(setting))
        found |= best_of(attempts)
    return found


def _all(measure_setting: MeasureSetting, settings: Sequence[str]) -> Ratios:
    return {name: value for setting in settings for name, value in measure_setting(setting).items()}


def read(file: Path, of_kind: str) -> dict[str, Recorded]:
    """What is recorded for a kind of processor."""
    everything = json.loads(file.read_bytes()) if file.exists() else {}
    return {name: Recorded(**one) for name, one in everything.get(of_kind, {}).get("ratios", {}).items()}


def record(file: Path, of_kind: str, repeated: Sequence[Ratios]) -> None:
    """Writes the ratios of repetitions; those of other kinds stay."""
    everything = json.loads(file.read_bytes()) if file.exists() else {}
    ratios = {name: asdict(Recorded.of([one[name] for one in repeated])) for name in repeated[0]}
    where = machine("cpu")
    everything[of_kind] = {
        "processor": where["processor"],
        "versions": where["versions"],
        "repetitions": len(repeated),
        "ratios": ratios,
    }
    file.write_text(json.dumps(everything, indent=1, sort_keys=True) + "\n")


def show(found: Mapping[str, float], recorded: Mapping[str, Recorded], of_kind: str) -> None:
    """Prints the ratios beside the recorded ones."""
    too_high = worse(found, recorded)
    table(
        [of_kind, "ratio", "recorded", "limit", ""],
        [
            [name, value, *_beside(recorded.get(name)), "worse" if name in too_high else ""]
            for name, value in found.items()
        ],
    )
    if not recorded:
        print(f"Nothing is recorded for {of_kind}: --record does so.")


def _beside(one: Recorded | None) -> list[float | None]:
    return [one.ratio, one.limit] if one else [None, None]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and compares or records."""
    commands = parser(__doc__, shape="smollm2", rounds=12)
    commands.add_argument("--settings", nargs="+", choices=SETTINGS, help="of the base")
    commands.add_argument("--record", action="store_true", help="write the ratios instead of comparing them")
    commands.add_argument("--repeat", type=int, default=5, help="how often --record measures")
    commands.add_argument("--recorded", type=Path, default=RECORDED, metavar="FILE")
    commands.set_defaults(clock="cpu", threads=1)
    options = commands.parse_args(arguments)
    settle(options)
    random.seed(0)
    own, settings = kind(torch.get_num_threads()), options.settings or _settings()
    with tempfile.TemporaryDirectory() as scratch:
        folder = base_folder(options, Path(scratch))
        measure_setting = partial(measure, folder=folder, options=options)
        if options.record:
            record(options.recorded, own, [_all(measure_setting, settings) for _ in range(options.repeat)])
            return
        recorded = read(options.recorded, own)
        found = check(measure_setting, settings, recorded)
    if options.json:
        print(json.dumps({"kind": own, "ratios": found, "worse": worse(found, recorded)}, indent=1))
    else:
        show(found, recorded, own)
    if worse(found, recorded):
        sys.exit(1)


def _settings() -> list[str]:
    """Those that this processor runs in reasonable time."""
    slow = set() if machine("cpu")["avx512_bf16"] else {"bfloat16"}
    return [name for name in SETTINGS if name not in slow]


if __name__ == "__main__":
    main()
