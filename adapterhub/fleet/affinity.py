"""Adapter affinity: a request goes where its adapter is loaded, unless that replica has much to do.

No replica gets more than its share of the load by a bound, so that a popular adapter spreads over several (consistent
hashing with bounded loads, Mirrokni, Thorup and Zadimoghaddam 2016, arXiv:1608.01350). Where replicas run batches that
are far from full, a little more load costs less than loading an adapter elsewhere; so the bound of one that has the
adapter is at least a share of what it may have.

An adapter that is loaded nowhere has a home by rendezvous hashing, the same for every front, so that most adapters keep
theirs when a replica comes or goes. Replicas with more than their share of the load, or with more adapters than half of
the others, are no home for a new one: it would drop an adapter there while others have room. The one with the fewest is
not preferred further, since one that has just started would get every new adapter of a fleet.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median_low

LOAD_FACTOR = 1.25
"""By how much a replica's load may exceed the mean before its adapters' requests go elsewhere."""
IDLE_SHARE = 1 / 8
"""A replica with less than this share of the requests that it may have keeps its adapters, whatever the mean is."""
_64_BITS = 2**64 - 1


@dataclass(frozen=True)
class ReplicaLoad:
    """What the choice needs to know of a replica.

    Attributes:
        name: Its address or id, which stays the same.
        in_flight: Requests that it has.
        max_in_flight: Requests that it may have.
        adapters: Names of the adapters that it has loaded; the request's is enough.
        adapter_count: How many it has loaded.
    """

    name: str
    in_flight: int
    max_in_flight: int
    adapters: frozenset[str] = frozenset()
    adapter_count: int = 0


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
        return sorted(free, key=_in_flight)
    # The request itself counts, so that the bound is at least 1 and an idle fleet is never above it.
    in_flight = sum([replica.in_flight for replica in replicas]) + 1
    bound = math.ceil(load_factor * in_flight / max(len(replicas), 1))
    loaded, others, busy = list[ReplicaLoad](), list[ReplicaLoad](), list[ReplicaLoad]()
    for replica in free:
        keeps = adapter in replica.adapters
        if replica.in_flight >= (max(bound, IDLE_SHARE * replica.max_in_flight) if keeps else bound):
            busy.append(replica)
        else:
            (loaded if keeps else others).append(replica)
    # Where some have it none of the others becomes a home, and hashing 1,000 names would be most of the time.
    homes = sorted(others, key=_in_flight) if loaded else _homes(others, adapter)
    return sorted(loaded, key=_in_flight) + homes + sorted(busy, key=_in_flight)


def _homes(replicas: Sequence[ReplicaLoad], adapter: str) -> list[ReplicaLoad]:
    """Replicas in the order in which they are to load an adapter that none has."""
    own, usual = _number(adapter), median_low([one.adapter_count for one in replicas] or [0])
    return sorted(replicas, key=lambda one: (one.adapter_count > usual, -_weight(_number(one.name), own)))


def home(replicas: Iterable[str], adapter: str) -> str:
    """The replica that an adapter's requests go to while it is loaded nowhere, and all have as much of everything.

    Args:
        replicas: The names of those that are ready; at least one.
        adapter: The adapter.
    """
    own = _number(adapter)
    return max(replicas, key=lambda replica: _weight(_number(replica), own))


def _in_flight(replica: ReplicaLoad) -> int:
    return replica.in_flight


def _weight(replica: int, adapter: int) -> int:
    """A number that belongs to this pair, evenly distributed: the adapter's home has the highest.

    Multiplications and shifts as in SplitMix64, since a digest of each pair would be most of a choice's time.
    """
    mixed = (replica ^ adapter) * 0x9E3779B97F4A7C15 & _64_BITS
    return (mixed ^ (mixed >> 32)) * 0xD6E8FEB86659FD93 & _64_BITS


@lru_cache(maxsize=4096)
def _number(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
