"""Several replicas that serve the same adapters: which of them answers a request."""

from adapterhub.fleet.affinity import ReplicaLoad, by_affinity, home

__all__ = ["ReplicaLoad", "by_affinity", "home"]
