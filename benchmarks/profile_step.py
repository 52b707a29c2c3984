"""Where the time of one decode step goes: kernels by time, how busy the GPU is, gaps between kernels.

    python -m benchmarks.profile_step --device cuda --shape 7b --rows 16 --adapters 16

Each contender's step is timed alone first, since the profiler slows what the CPU does; then some steps run under
`torch.profiler`. `busy` is the kernels' time in a step, which the profiler hardly changes, over the step's time without
it. Kernels are grouped by what the step was doing when they were launched: the base's linear layers, the adapters,
the engine's attention, sampling, everything else. On a CPU the operations themselves stand for kernels.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import bitsandbytes
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from adapterhub.base.half_weights import HalfWeightLinear
from adapterhub.base.packed_linear import PackedLinear4bit
from adapterhub.engine.decoding.sampler import StepLogits
from adapterhub.engine.kv.packed_step import AttentionMetadata
from adapterhub.lora.stacked_weights import StackedLoraWeights
from benchmarks.common import parser, random_adapters, random_base, report, settle, timed
from benchmarks.contenders import Contender, Ours, StaticBatch, twin
from benchmarks.output import progress, table
from benchmarks.shapes import VOCABULARY

BASE, OURS = "base, static batch", "ours"
LINEAR, ADAPTERS, ATTENTION, SAMPLING, REST = (
    "base's linear layers",
    "adapters",
    "attention",
    "sampling",
    "rest",
)
PARTS = (LINEAR, ADAPTERS, ATTENTION, SAMPLING)
STEPS = 4
MAX_NAME_LENGTH = 90


def measure(contender: Contender, options: argparse.Namespace) -> dict[str, Any]:
    """The step of a batch that has started."""
    plain = [timed(contender.step, options) for _ in range(options.rounds)][1:]
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (options.device != "cpu")
    with _named_parts(), profile(activities=activities) as prof:
        profiled = [timed(contender.step, options) for _ in range(STEPS)]
    wall = 1000 * statistics.median(plain)
    return {
        "ms": wall,
        "ms_profiled": 1000 * statistics.median(profiled),
        **_read(prof.events(), wall, options),
    }


@contextmanager
def _named_parts() -> Iterator[None]:
    """Makes the profiler see which part of a step something belongs to."""
    with (
        patch.object(StackedLoraWeights, "apply", _named(ADAPTERS, StackedLoraWeights.apply)),
        patch.object(AttentionMetadata, "attend_tokens", _named(ATTENTION, AttentionMetadata.attend_tokens)),
        patch.object(StepLogits, "__init__", _named(SAMPLING, StepLogits.__init__)),
        patch.object(StepLogits, "get", _named(SAMPLING, StepLogits.get)),
        patch.object(torch.nn.functional, "linear", _named(LINEAR, torch.nn.functional.linear)),
        patch.object(bitsandbytes, "matmul_4bit", _named(LINEAR, bitsandbytes.matmul_4bit)),
        # Not their `forward`, which the engine has looked up before.
        patch.object(PackedLinear4bit, "multiply_packed", _named(LINEAR, PackedLinear4bit.multiply_packed)),
        patch.object(PackedLinear4bit, "multiply_densely", _named(LINEAR, PackedLinear4bit.multiply_densely)),
        patch.object(HalfWeightLinear, "forward", _named(LINEAR, HalfWeightLinear.forward)),
    ):
        yield


def _named(part: str, do: Callable[..., Any]) -> Callable[..., Any]:
    def named(*args: Any, **kwargs: Any) -> Any:
        with record_function(part):
            return do(*args, **kwargs)

    return named


def _read(events: Sequence[Any], wall: float, options: argparse.Namespace) -> dict[str, Any]:
    """What a step is made of; all times in milliseconds and all counts are those of one step."""
    on_cpu = [event for event in events if event.device_type == DeviceType.CPU]
    if options.device == "cpu":
        found = [(e.name, e.time_range.start, e.self_cpu_time_total) for e in on_cpu if e.self_cpu_time_total]
        started = [(event, event.self_cpu_time_total) for event in on_cpu]
    else:
        on_gpu = [e for e in events if e.device_type == DeviceType.CUDA and e.name not in PARTS]
        found = [(e.name, e.time_range.start, e.time_range.elapsed_us()) for e in on_gpu]
        started = [(e, kernel.duration) for e in on_cpu for kernel in e.kernels if kernel.name not in PARTS]
    kernels: dict[str, list[float]] = {}
    for name, _, microseconds in found:
        kernels.setdefault(name[:MAX_NAME_LENGTH], []).append(microseconds)
    parts: dict[str, list[float]] = {}
    for event, microseconds in started:
        parts.setdefault(_part(event) or REST, []).append(microseconds)
    gaps, end = [], None
    for _, start, microseconds in sorted(found, key=lambda one: one[1]) if options.device != "cpu" else ():
        if end is not None:
            gaps.append(max(0.0, start - end))
        end = max(end or 0.0, start + microseconds)
    busy = sum(sum(taken) for taken in kernels.values()) / 1000 / STEPS
    return {
        "kernels": len(found) / STEPS,
        "kernel_ms": busy,
        "busy": busy / wall,
        "gap_us_median": statistics.median(gaps) if gaps else None,
        "gap_ms": sum(gaps) / 1000 / STEPS if gaps else None,
        "cpu_ms_of_parts": {
            part: sum(e.cpu_time_total for e in on_cpu if e.name == part and _part(e.cpu_parent) != part)
            / 1000
            / STEPS
            for part in PARTS
        },
        "parts": _sums(parts),
        "by_kernel": _sums(kernels)[: options.top],
    }


def _part(event: Any) -> str | None:
    while event is not None:
        if event.name in PARTS:
            return str(event.name)
        event = event.cpu_parent
    return None


def _sums(taken: dict[str, list[float]]) -> list[dict[str, Any]]:
    return [
        {"name": name, "ms": sum(own) / 1000 / STEPS, "started": len(own) / STEPS}
        for name, own in sorted(taken.items(), key=lambda item: -sum(item[1]))
    ]


def show(results: dict[str, dict[str, Any]]) -> None:
    """Prints the tables."""
    keys = ("ms", "ms_profiled", "kernels", "kernel_ms", "busy", "gap_us_median", "gap_ms")
    table(["", *keys], [[name, *(one[key] for key in keys)] for name, one in results.items()])
    for name, one in results.items():
        for what in ("parts", "by_kernel"):
            print(f"\n{name}")
            table(
                [what, "ms", "started"],
                [[row[key] for key in ("name", "ms", "started")] for row in one[what]],
            )
        print(f"\n{name}, milliseconds of the CPU under the profiler")
        table(["part", "ms"], [[part, ms] for part, ms in one["cpu_ms_of_parts"].items()])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    commands = parser(__doc__)
    commands.add_argument("--rows", type=int, default=16)
    commands.add_argument("--adapters", type=int, default=16)
    commands.add_argument("--prompt", type=int, default=64, help="tokens before the first step")
    commands.add_argument("--top", type=int, default=20, help="kernels to list")
    options = commands.parse_args(arguments)
    settle(options)
    random.seed(0)
    steps = options.rounds + STEPS + 2
    with tempfile.TemporaryDirectory() as scratch:
        base = random_base(options, Path(scratch))
        adapters = random_adapters(options, base, options.adapters, Path(scratch))
        prompts = [random.choices(range(3, VOCABULARY), k=options.prompt) for _ in range(options.rows)]
        chosen = [adapters[row % len(adapters)] for row in range(options.rows)]
        engine = Ours(twin(base), adapters, options.rows, options.prompt + steps + 2)
        results = {}
        for name, contender, own in (
            (BASE, StaticBatch(base.model), [None] * options.rows),
            (OURS, engine, chosen),
        ):
            progress(name)
            contender.start(prompts, own, steps)
            results[name] = measure(contender, options)
            contender.stop()
    report(options, {"profile": results}, lambda: show(results))


if __name__ == "__main__":
    main()
