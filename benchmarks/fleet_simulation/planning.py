"""How many replicas are enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.fleet_simulation.replica import ReplicaLimits
from benchmarks.fleet_simulation.service_times import ServiceTimes
from benchmarks.fleet_simulation.simulation import Figures, figures, simulate
from benchmarks.fleet_simulation.workload import Trace, Workload, draw

MAX_REPLICAS = 4096
MIN_REQUESTS = 500
"""Fewer say nothing about one in a hundred."""


@dataclass(frozen=True)
class Target:
    """What a fleet is to reach: 99 of 100 first tokens within so many seconds, and hardly a request refused.

    Attributes:
        first_token: Seconds.
        refused: The largest share of requests that may be refused.
    """

    first_token: float = 1.0
    refused: float = 0.001

    def is_met(self, found: Figures) -> bool:
        """Whether a fleet reaches it."""
        return found.refused <= self.refused and found.first_token_p99 <= self.first_token


def replicas_for(
    trace: Trace, target: Target, *, policy: str, times: ServiceTimes, limits: ReplicaLimits
) -> tuple[int, Figures] | None:
    """The fewest replicas that reach a target, and what they do; None if no number does.

    More replicas are taken to be never worse.
    """
    tried: dict[int, Figures] = {}

    def enough(count: int) -> bool:
        tried[count] = figures(simulate(trace, replicas=count, policy=policy, times=times, limits=limits))
        return target.is_met(tried[count])

    count = fewest(enough, MAX_REPLICAS)
    return None if count is None else (count, tried[count])


def fewest(enough: Callable[[int], bool], most: int) -> int | None:
    """The smallest number from 1 to `most` that is enough, where larger ones are too; None if none is."""
    high = 1
    while not enough(high):
        if high >= most:
            return None
        high = min(2 * high, most)
    low = high // 2  # not enough, or 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def merged_replicas_for(
    workload: Workload, target: Target, *, times: ServiceTimes, limits: ReplicaLimits, seed: int = 0
) -> int | None:
    """The fewest replicas that reach a target where each serves the merged model of one adapter; None if none do."""
    total = 0
    for share in workload.popularity:
        asked = max(MIN_REQUESTS, int(share * workload.requests))
        own = draw(replace(workload, adapters=1, rate=share * workload.rate, requests=asked), seed)
        found = replicas_for(own, target, policy="least in flight", times=times.merged, limits=limits)
        if found is None:
            return None
        total += found[0]
    return total
