"""The fleet, the clock, and what comes out."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.fleet_simulation.policies import POLICIES
from benchmarks.fleet_simulation.replica import Replica, ReplicaLimits, SimulatedRequest
from benchmarks.fleet_simulation.service_times import ServiceTimes
from benchmarks.fleet_simulation.workload import Trace

WARM_UP = 0.2


class Clock:
    """Calls at given times, in order; those at one time in the order in which they were asked for."""

    def __init__(self) -> None:
        self._calls: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = itertools.count()

    def schedule(self, at: float, call: Callable[[float], None]) -> None:
        """Asks for a call at a time."""
        heapq.heappush(self._calls, (at, next(self._numbers), call))

    def run_until(self, at: float) -> None:
        """Makes all calls up to a time."""
        while self._calls and self._calls[0][0] <= at:
            time, _, call = heapq.heappop(self._calls)
            call(time)


class Restarts:
    """Lets replicas restart at random moments: each ends what it has, is away, and comes back with empty memories.

    Args:
        ready: The replicas that take requests; those that are away are taken out.
        mean_seconds: Between two restarts of a replica, on average.
        until: No restart begins after this.
        clock: Of the simulation.
        seed: Of the moments.
    """

    AWAY_SECONDS = 3.0

    def __init__(
        self, ready: list[Replica], mean_seconds: float, *, until: float, clock: Clock, seed: int
    ) -> None:
        self._ready, self._mean_seconds, self._until, self._clock = ready, mean_seconds, until, clock
        self._chance = random.Random(seed)
        for replica in ready:
            self._plan(replica, 0.0)

    def _plan(self, replica: Replica, now: float) -> None:
        at = now + self._chance.expovariate(1 / self._mean_seconds)
        if at < self._until:
            self._clock.schedule(at, lambda now: self._leave(replica, now))

    def _leave(self, replica: Replica, now: float) -> None:
        self._ready.remove(replica)
        self._clock.schedule(now + self.AWAY_SECONDS, lambda now: self._return(replica, now))

    def _return(self, replica: Replica, now: float) -> None:
        replica.forget()
        self._ready.append(replica)
        self._plan(replica, now)


@dataclass(frozen=True)
class Figures:
    """What a fleet did with the requests of a trace, those of its warm-up left out.

    Attributes:
        requests: How many there were.
        refused: The share that no replica took.
        loads_per_request: Adapters read from disk, over the requests that were taken.
        slot_hit_rate: The share of requests that found their adapter in a LoRA slot.
        first_token_p50: Seconds from arrival to first token, median.
        first_token_p95: 95th percentile.
        first_token_p99: 99th percentile.
        latency_p50: Seconds from arrival to last token, median.
        latency_p99: 99th percentile.
        requests_per_second: Answers, over the time from the first arrival to the last end.
        tokens_per_second: Their tokens.
    """

    requests: int
    refused: float
    loads_per_request: float
    slot_hit_rate: float
    first_token_p50: float
    first_token_p95: float
    first_token_p99: float
    latency_p50: float
    latency_p99: float
    requests_per_second: float
    tokens_per_second: float


def simulate(
    trace: Trace,
    *,
    replicas: int,
    policy: str,
    times: ServiceTimes,
    limits: ReplicaLimits | None = None,
    seed: int = 0,
    free_loads: float = 0.0,
    restart_seconds: float | None = None,
) -> list[SimulatedRequest]:
    """The requests of a trace, and what became of each.

    Args:
        trace: The requests.
        replicas: How many there are.
        policy: One of `POLICIES`.
        times: What a replica's work takes.
        limits: A replica's sizes.
        seed: Of a policy's random choices.
        free_loads: For the first share of the requests adapters are read in no time: it fills host memories, which
            takes a real fleet minutes.
        restart_seconds: How long a replica lives on average (see `Restarts`); None: all live on.
    """
    clock, free = Clock(), replace(times, disk_load=0.0)
    fleet = [
        Replica(f"replica-{number}", limits or ReplicaLimits(), free, clock.schedule)
        for number in range(replicas)
    ]
    ready = list(fleet)
    choose, requests = POLICIES[policy](ready, seed), _requests(trace)
    if restart_seconds is not None:
        Restarts(ready, restart_seconds, until=trace.at[-1], clock=clock, seed=seed)
    for request in requests:
        clock.run_until(request.at)
        if request.number == int(free_loads * len(requests)):
            for replica in fleet:
                replica.times = times
        chosen = choose(request.adapter) if ready else None
        if chosen is not None:
            chosen.submit(request, request.at)
    clock.run_until(float("inf"))
    return requests


def _requests(trace: Trace) -> list[SimulatedRequest]:
    columns = zip(trace.at, trace.adapter, trace.output_tokens, strict=True)
    return [
        SimulatedRequest(number, at, trace.names[adapter], trace.prompt_tokens, output)
        for number, (at, adapter, output) in enumerate(columns)
    ]


def figures(requests: Sequence[SimulatedRequest], warm_up: float = WARM_UP) -> Figures:
    """What became of requests, without the first share of them."""
    counted = requests[int(warm_up * len(requests)) :]
    taken = [one for one in counted if one.replica is not None]
    first = np.array([one.first_token - one.at for one in taken] or [np.nan])
    latency = np.array([one.end - one.at for one in taken] or [np.nan])
    seconds = max((one.end for one in taken), default=np.nan) - counted[0].at
    return Figures(
        requests=len(counted),
        refused=1 - len(taken) / len(counted),
        loads_per_request=float(np.mean([one.disk_load for one in taken] or [np.nan])),
        slot_hit_rate=float(np.mean([one.slot_hit for one in taken] or [np.nan])),
        first_token_p50=float(np.percentile(first, 50)),
        first_token_p95=float(np.percentile(first, 95)),
        first_token_p99=float(np.percentile(first, 99)),
        latency_p50=float(np.percentile(latency, 50)),
        latency_p99=float(np.percentile(latency, 99)),
        requests_per_second=len(taken) / seconds,
        tokens_per_second=sum(one.output_tokens for one in taken) / seconds,
    )
