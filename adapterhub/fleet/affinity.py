"""Adapter affinity: a request goes where its adapter is loaded, unless that replica is much busier than the others.

An adapter that is loaded nowhere has a home by rendezvous hashing, so that most adapters keep theirs when a replica
comes or goes. No replica gets more than its share of the load by a bound, so that a popular adapter spreads over
several (consistent hashing with bounded loads, Mirrokni, Thorup and Zadimoghaddam 2016, arXiv:1608.01350).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

LOAD_FACTOR = 1.25
"""By how much a replica's load may exceed the mean before its adapters' requests go elsewhere."""


@dataclass(frozen=True)
class ReplicaLoad:
    """What the choice needs to know of a replica.

    Attributes:
        name: Its address or id, which stays the same.
        in_flight: Requests that it has.
        max_in_flight: Requests that it may have.
        adapters: Names of the adapters that it has loaded.
    """

    name: str
    in_flight: int
    max_in_flight: int
    adapters: frozenset[str] = frozenset()


def by_affinity(
    replicas: Sequence[ReplicaLoad], adapter: str | None, *, load_factor: float = LOAD_FACTOR
) -> list[ReplicaLoad]:
    """The replicas that may take a request, the best first; none if all are full.

    Args:
        replicas: Those that are ready.
        adapter: The request's adapter; None for the bare base, which every replica has.
        load_factor: By how much a load may exceed the mean.
    """
    free = [replica for replica in replicas if replica.in_flight < replica.max_in_flight]
    if adapter is None:
        return sorted(free, key=lambda replica: replica.in_flight)
    # The request itself counts, so that the bound is at least 1 and an idle fleet is never above it.
    in_flight = sum(replica.in_flight for replica in replicas) + 1
    bound = math.ceil(load_factor * in_flight / max(len(replicas), 1))

    def rank(replica: ReplicaLoad) -> tuple[int, float]:
        if replica.in_flight >= bound:
            return 2, replica.in_flight
        if adapter in replica.adapters:
            return 0, replica.in_flight
        return 1, -_weight(replica.name, adapter)

    return sorted(free, key=rank)


def _weight(replica: str, adapter: str) -> int:
    """A number that belongs to this pair, evenly distributed: the adapter's home has the highest."""
    digest = hashlib.blake2b(f"{replica}\n{adapter}".encode(), digest_size=8).digest()
    return int.from_bytes(digest)
