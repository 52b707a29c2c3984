"""Which replica answers: `adapterhub.fleet.by_affinity` as a request router of Ray Serve."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from adapterhub.fleet import ReplicaLoad, by_affinity


class AffinityRouter(RequestRouter):  # type: ignore[misc]  # Ray is an extra
    """Sends a request where its adapter is loaded; each front has one.

    The adapter is in the call that the front makes (`HttpCall.adapter`). What replicas have loaded comes from their
    `record_routing_stats`, a second or two late; until then an adapter that they do not name goes to the same replica.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The replicas that may take a request, the best first, each a rank of its own."""
        replicas = {one.replica_id.unique_id: one for one in candidate_replicas}
        loads = [self._load(name, one) for name, one in replicas.items()]
        best_first = by_affinity(loads, _adapter_of(pending_request))
        # Without the others: where all are full, Ray asks them for their queues, and calls again.
        return [[replicas[load.name]] for load in best_first] or [candidate_replicas]

    def _load(self, name: str, replica: RunningReplica) -> ReplicaLoad:
        in_flight = self.replica_queue_len_cache.get(replica.replica_id) or 0  # as far as this front knows
        adapters = frozenset(replica.routing_stats.get("adapters", ()))
        return ReplicaLoad(name, in_flight, replica.max_ongoing_requests, adapters, len(adapters))


def _adapter_of(request: PendingRequest | None) -> str | None:
    calls: list[Any] = request.args if request else []
    return calls[0].adapter if calls else None
