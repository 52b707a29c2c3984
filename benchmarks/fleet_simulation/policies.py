"""How a request is given a replica."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from adapterhub.fleet import by_affinity, home
from benchmarks.fleet_simulation.replica import Replica

Policy = Callable[[str], Replica | None]
"""Adapter -> the replica that takes the request; None if it is refused."""


def at_random(replicas: Sequence[Replica], seed: int) -> Policy:
    """Any replica that has room."""
    chance = random.Random(seed)

    def choose(adapter: str) -> Replica | None:
        replica = chance.choice(replicas)
        if replica.has_room:
            return replica
        free = [one for one in replicas if one.has_room]
        return chance.choice(free) if free else None

    return choose


def least_in_flight(replicas: Sequence[Replica], seed: int) -> Policy:
    """The replica with the fewest requests, one of those at random."""
    chance = random.Random(seed)

    def choose(adapter: str) -> Replica | None:
        least = min(one.load.in_flight for one in replicas)
        replica = chance.choice([one for one in replicas if one.load.in_flight == least])
        return replica if replica.has_room else None

    return choose


def affinity(replicas: Sequence[Replica], seed: int) -> Policy:
    """`adapterhub.fleet.by_affinity`, which serves, too."""
    by_name = {one.name: one for one in replicas}

    def choose(adapter: str) -> Replica | None:
        ranked = by_affinity([one.load for one in replicas], adapter)
        return by_name[ranked[0].name] if ranked else None

    return choose


def sticky(replicas: Sequence[Replica], seed: int) -> Policy:
    """Always the adapter's home, by rendezvous hashing, however busy it is."""
    by_name = {one.name: one for one in replicas}

    def choose(adapter: str) -> Replica | None:
        replica = by_name[home([one.name for one in replicas], adapter)]
        return replica if replica.has_room else None

    return choose


POLICIES: dict[str, Callable[[Sequence[Replica], int], Policy]] = {
    "random": at_random,
    "least in flight": least_in_flight,
    "affinity": affinity,
    "sticky": sticky,
}
