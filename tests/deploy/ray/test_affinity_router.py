"""The request router's policy, without a cluster."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: `make test-ray` installs it")
from ray.serve._private.common import RequestMetadata
from ray.serve.request_router import PendingRequest

from adapterhub.deploy.ray.affinity_router import AffinityRouter
from adapterhub.deploy.ray.http_call import HttpCall


@dataclass(frozen=True)
class Id:
    unique_id: str


@dataclass
class Replica:
    """What the router reads of Ray's `RunningReplica`."""

    name: str
    routing_stats: dict[str, Any] = field(default_factory=dict)
    max_ongoing_requests: int = 4

    @property
    def replica_id(self) -> Id:
        return Id(self.name)


class Router(AffinityRouter):
    """Without Ray's bookkeeping, which needs a cluster."""

    def __init__(self, **in_flight: int) -> None:
        self._in_flight = in_flight

    @property
    def replica_queue_len_cache(self) -> Any:
        return self

    def get(self, replica: Id) -> int | None:
        return self._in_flight.get(replica.unique_id)


def request(adapter: str | None) -> PendingRequest:
    metadata = RequestMetadata(request_id="1", internal_request_id="1")
    future: Any = None
    return PendingRequest([HttpCall({}, b"", adapter)], {}, metadata, future=future)


async def order(router: Router, replicas: list[Replica], adapter: str | None) -> list[list[str]]:
    ranks = await router.choose_replicas(replicas, request(adapter))  # type: ignore[arg-type]
    return [[one.name for one in rank] for rank in ranks]


async def test_where_the_adapter_is_loaded_comes_first():
    replicas = [Replica("a"), Replica("b", {"adapters": ["sql"]}), Replica("c")]
    assert (await order(Router(), replicas, "sql"))[0] == ["b"]


async def test_every_front_sends_a_new_adapter_to_the_same_replica():
    replicas = [Replica("a"), Replica("b"), Replica("c")]
    homes = {str(i): (await order(Router(), replicas, str(i)))[0][0] for i in range(30)}
    assert set(homes.values()) == {"a", "b", "c"}
    assert homes == {str(i): (await order(Router(), replicas[::-1], str(i)))[0][0] for i in range(30)}


async def test_a_much_busier_replica_comes_last():
    replicas = [Replica("a", {"adapters": ["sql"]}), Replica("b")]
    assert await order(Router(a=3), replicas, "sql") == [["b"], ["a"]]


async def test_the_base_goes_to_the_least_busy():
    assert await order(Router(a=2, b=1), [Replica("a"), Replica("b")], None) == [["b"], ["a"]]


async def test_a_full_replica_is_left_out_and_all_are_asked_where_all_are_full():
    replicas = [Replica("a"), Replica("b")]
    assert await order(Router(a=4), replicas, "sql") == [["b"]]
    assert await order(Router(a=4, b=4), replicas, "sql") == [["a", "b"]]


async def test_what_is_no_call_of_a_front_goes_anywhere():
    router: Any = Router()
    assert len(await router.choose_replicas([Replica("a"), Replica("b")], None)) == 2
