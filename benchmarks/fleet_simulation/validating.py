"""The simulation beside real engines: the same requests, choices by the same function, what was predicted and measured.

    python -m benchmarks.fleet_simulation.validating

Each replica is a `BatchingEngine` with its own scheduler, queue, LoRA slots and adapter cache, whose forward passes and
loads sleep for what a `ServiceTimes` says. So the model of a replica and of routing is checked, on any machine, however
busy; the service times are not. The first prediction is made with the seconds that were asked for, the second also with
what a step took longer than that: sleeping, and the engine's work between two steps.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from adapterhub.base.loading import Base, load_base
from adapterhub.config import EngineLimits
from adapterhub.engine import BatchingEngine
from adapterhub.engine.interface import LoraRequest, Request
from adapterhub.engine.kv.cache import KVCache
from adapterhub.engine.kv.prefix_cache import PrefixCache
from adapterhub.engine.kv.shape import KVShape
from adapterhub.engine.runner import Proof, ScheduledSequence
from adapterhub.engine.sampling_params import SamplingParams
from adapterhub.fleet import ReplicaLoad
from adapterhub.lora.delta import ModuleDelta
from adapterhub.lora.request import StoredLoraRequest
from benchmarks.fleet_simulation.policies import POLICIES
from benchmarks.fleet_simulation.replica import ReplicaLimits, SimulatedRequest
from benchmarks.fleet_simulation.service_times import ServiceTimes
from benchmarks.fleet_simulation.simulation import Figures, figures, simulate
from benchmarks.fleet_simulation.workload import Trace, Workload, draw
from benchmarks.output import progress, table

SLEEPING = ServiceTimes(
    step=0.08, row=0.004, adapter=0.004, prefill_token=0.0005, slot_load=0.02, disk_load=0.3
)
"""Long enough that what a busy machine adds to a sleep is little."""
MAX_SECONDS_BETWEEN_STEPS = 0.1
"""After more than this there was nothing to do."""
COMPARED = (
    "loads_per_request",
    "slot_hit_rate",
    "first_token_p50",
    "first_token_p95",
    "latency_p50",
    "latency_p99",
    "tokens_per_second",
    "refused",
)


class SleepingRunner:
    """A `Runner` whose steps take the seconds of some `ServiceTimes`, and compute nothing."""

    name, forward = "sleeping", "none"
    proof: Proof | None = None
    adapter_bytes = 0

    def __init__(self, base: Base, times: ServiceTimes) -> None:
        self._base, self._times = base, times
        self._ended = float("nan")  # the last step; not a number after a load
        self.late: list[float] = []  # seconds that each step ended late, with those since the step before it

    def make_caches(self, max_bytes: int) -> tuple[KVCache, PrefixCache]:
        """Real ones, of the base's shape."""
        shape = KVShape.of(
            self._base.model.config.get_text_config(), self._base.compute_dtype, self._base.device
        )
        cache = KVCache(shape, max_bytes // shape.unit_bytes)
        return cache, PrefixCache(cache, 0)

    def step(self, sequences: Sequence[ScheduledSequence]) -> torch.Tensor:
        """Sleeps; every token is the first of the vocabulary."""
        adapters = {one.lora_slot for one in sequences} - {None}
        prompts = sum(len(one.token_ids) for one in sequences if len(one.token_ids) > 1)
        started, seconds = (
            time.perf_counter(),
            self._times.step_seconds(len(sequences), len(adapters), prompts),
        )
        time.sleep(seconds)
        between = started - self._ended
        if between < MAX_SECONDS_BETWEEN_STEPS:
            self.late.append(time.perf_counter() - started - seconds + between)
        self._ended = time.perf_counter()
        for one in sequences:
            one.kv_slot.length += len(one.token_ids)
        return torch.zeros(sum(one.needs_logits for one in sequences), self._base.vocabulary_size)

    def load_adapter(self, slot: int, deltas: Mapping[str, ModuleDelta]) -> None:
        """Sleeps."""
        time.sleep(self._times.slot_load)
        self._ended = float("nan")

    def clear_adapter(self, slot: int) -> None:
        """Does nothing."""


class KnownReplica(ABC):
    """What a front knows of a replica that is real; it looks like a `Replica` to a policy.

    Attributes:
        name: Its name.
        load: What the front knows.
        loads: How often it has read an adapter from disk; not a number where that cannot be seen.
    """

    loads: float = float("nan")

    def __init__(self, name: str, limits: ReplicaLimits) -> None:
        self.name, self._limits = name, limits
        self._sent: OrderedDict[str, None] = OrderedDict()  # as many as host memory holds, LRU first
        self.load = ReplicaLoad(name, 0, limits.max_in_flight)

    @property
    def has_room(self) -> bool:
        """Whether it takes one more request."""
        return self.load.in_flight < self.load.max_in_flight

    @abstractmethod
    async def answer(self, request: SimulatedRequest, asked: Request, zero: float) -> None:
        """Answers a request, and notes when."""

    @abstractmethod
    def slot_hits(self) -> tuple[int, int]:
        """How many requests found their adapter in a slot, and how many did not."""

    def begin(self, request: SimulatedRequest) -> None:
        """A request was sent to it."""
        request.replica = self.name
        self._sent[request.adapter] = None
        self._sent.move_to_end(request.adapter)
        if len(self._sent) > self._limits.max_cpu_loras:
            self._sent.popitem(last=False)
        self._publish(+1)

    def end(self) -> None:
        """A request was answered."""
        self._publish(-1)

    def _publish(self, change: int) -> None:
        in_flight = self.load.in_flight + change
        sent = frozenset(self._sent)
        self.load = ReplicaLoad(self.name, in_flight, self._limits.max_in_flight, sent, len(sent))


class RealReplica(KnownReplica):
    """An engine in this process whose steps and loads sleep.

    Attributes:
        runner: Of its engine.
    """

    def __init__(self, name: str, base: Base, times: ServiceTimes, limits: ReplicaLimits) -> None:
        super().__init__(name, limits)
        self.loads, self.runner = 0, SleepingRunner(base, times)

        def load_adapter(adapter: LoraRequest) -> Mapping[str, ModuleDelta]:
            time.sleep(times.disk_load)
            self.loads += 1
            return {}

        self._engine = BatchingEngine(
            base, engine_limits(limits), runner=self.runner, load_adapter=load_adapter
        )

    async def answer(self, request: SimulatedRequest, asked: Request, zero: float) -> None:
        """Answers a request, and notes when."""
        self.begin(request)
        async for _ in self._engine.astream(asked):
            request.end = time.perf_counter() - zero
            if request.first_token != request.first_token:  # not a number yet
                request.first_token = request.end
        self.end()

    def slot_hits(self) -> tuple[int, int]:
        """How many requests found their adapter in a slot, and how many did not."""
        stats = self._engine.stats()
        return stats.hits, stats.loads

    def close(self) -> None:
        """Ends the engine."""
        self._engine.close()


def engine_limits(limits: ReplicaLimits) -> EngineLimits:
    """The engine's names for a replica's sizes."""
    return EngineLimits(
        max_loras=limits.max_loras,
        max_cpu_loras=limits.max_cpu_loras,
        max_batch_size=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_queue=limits.max_in_flight,
    )


def measure(trace: Trace, replicas: Sequence[KnownReplica], policy: str, vocabulary: int) -> Figures:
    """Sends the requests of a trace to real replicas when they are due."""
    choose: Callable[[str], Any] = POLICIES[policy](replicas, 0)  # type: ignore[arg-type]
    chance = random.Random(0)
    requests = [
        SimulatedRequest(number, at, trace.names[adapter], trace.prompt_tokens, tokens)
        for number, (at, adapter, tokens) in enumerate(
            zip(trace.at, trace.adapter, trace.output_tokens, strict=True)
        )
    ]

    async def send_all() -> None:
        zero, running = time.perf_counter(), []
        for request in requests:
            await asyncio.sleep(request.at - (time.perf_counter() - zero))
            replica = choose(request.adapter)
            if replica is not None:
                running.append(asyncio.create_task(replica.answer(request, ask(request), zero)))
        await asyncio.gather(*running)

    def ask(request: SimulatedRequest) -> Request:
        prompt = chance.choices(range(3, vocabulary), k=request.prompt_tokens)
        sampling = SamplingParams(max_tokens=request.output_tokens, ignore_eos=True, temperature=0)
        adapter = StoredLoraRequest(request.adapter, request.adapter, Path(request.adapter))
        return Request(prompt, adapter, sampling)

    asyncio.run(send_all())
    found = asdict(figures(requests, warm_up=0))
    hits, loads = map(sum, zip(*(one.slot_hits() for one in replicas), strict=True))
    read = sum(one.loads for one in replicas) / len(requests)
    return Figures(**found | {"slot_hit_rate": hits / (hits + loads), "loads_per_request": read})


def validate(options: argparse.Namespace) -> list[dict[str, Any]]:
    """For each policy and figure: predicted, measured, and the error."""
    base = load_base("adapterhub-demo", quantization=None, device="cpu")
    limits, trace = limits_of(options), trace_of(options)
    results = []
    for policy in options.policies:
        progress(f"{policy}: {trace.at[-1]:.0f} s")
        replicas = [
            RealReplica(f"replica-{number}", base, SLEEPING, limits) for number in range(options.replicas)
        ]
        measured = measure(trace, replicas, policy, base.vocabulary_size)
        for replica in replicas:
            replica.close()
        late = statistics.mean(second for one in replicas for second in one.runner.late)
        progress(f"a step took {1000 * late:.1f} ms longer than asked for")
        predicted = [
            figures(
                simulate(trace, replicas=options.replicas, policy=policy, times=times, limits=limits),
                warm_up=0,
            )
            for times in (SLEEPING, replace(SLEEPING, step=SLEEPING.step + late))
        ]
        results += compared(policy, measured, predicted, COMPARED)
    return results


def limits_of(options: argparse.Namespace) -> ReplicaLimits:
    """The sizes of a replica that the options describe."""
    return ReplicaLimits(
        options.max_loras, options.max_cpu_loras, options.max_num_seqs, max_in_flight=options.max_in_flight
    )


def trace_of(options: argparse.Namespace) -> Trace:
    """The requests that the options describe."""
    workload = Workload(options.adapters, options.rate, options.requests, output_tokens=options.tokens)
    return draw(workload, options.seed)


def compared(
    policy: str, measured: Figures, predicted: Sequence[Figures], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Some figures of a policy: measured, and by two predictions."""
    plain, corrected = predicted
    return [
        {
            "policy": policy,
            "figure": name,
            "measured": getattr(measured, name),
            "predicted": getattr(plain, name),
            "corrected": getattr(corrected, name),
        }
        for name in names
    ]


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """The options of a comparison."""
    commands = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands.add_argument("--policies", nargs="+", choices=POLICIES, default=["random", "affinity"])
    commands.add_argument("--replicas", type=int, default=3)
    commands.add_argument("--adapters", type=int, default=60)
    commands.add_argument("--rate", type=float, default=6.0)
    commands.add_argument("--requests", type=int, default=400)
    commands.add_argument("--tokens", type=int, default=16)
    commands.add_argument("--seed", type=int, default=0)
    commands.add_argument("--max-loras", type=int, default=4)
    commands.add_argument("--max-cpu-loras", type=int, default=12)
    commands.add_argument("--max-num-seqs", type=int, default=8)
    commands.add_argument("--max-in-flight", type=int, default=32)
    commands.add_argument("--json", action="store_true")
    return commands


def show(found: Sequence[Mapping[str, Any]], corrected: str, options: argparse.Namespace) -> None:
    """Prints predicted and measured figures side by side.

    Args:
        found: Those of `compared`.
        corrected: What the second prediction is called.
        options: Of the comparison.
    """
    if options.json:
        print(json.dumps({"options": vars(options), "found": found}, indent=2))
        return
    titles = ["", "figure", "measured", "predicted", "error %", corrected, "error %"]
    table(titles, [_beside(*one.values()) for one in found])


def _beside(policy: str, figure: str, measured: float, *predicted: float) -> list[object]:
    errors = [100 * (one / measured - 1) if measured else None for one in predicted]
    return [policy, figure, measured, predicted[0], errors[0], predicted[1], errors[1]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs both, and prints them side by side."""
    options = parser_of(__doc__).parse_args(arguments)
    show(validate(options), "with the steps' delay", options)


if __name__ == "__main__":
    main()
