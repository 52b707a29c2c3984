"""The server as the front of a fleet of vLLM servers: what it tells of them, draining, readiness, headers."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapterhub import EchoEngine
from adapterhub.engine.echo import EchoTokenizer
from adapterhub.vllm import FleetLimits, ServedBase, VLLMEngine
from tests.fake_vllm import FakeServer, FakeVllm
from tests.server.admin import ANY, Served, served, write_keys

BASE = ServedBase("echo", EchoTokenizer(), None, vocabulary_size=0x110000)
DRAIN = "/v1/fleet/drain"


@pytest.fixture
def fakes() -> Iterator[list[FakeServer]]:
    with FakeServer(FakeVllm()) as first, FakeServer(FakeVllm()) as second:
        yield [first, second]


@pytest.fixture
def sync_seconds() -> float:
    return 0.1


@pytest.fixture
def server(
    fakes: list[FakeServer],
    sync_seconds: float,
    tiny_registry: Path,
    tiny_adapters: dict[str, Path],
    tmp_path: Path,
) -> Iterator[Served]:
    limits = FleetLimits(sync_seconds=sync_seconds)
    engine = VLLMEngine([fake.url for fake in fakes], BASE, limits=limits)
    with served(tiny_registry, tiny_adapters, tmp_path, engine, **write_keys(tmp_path)) as server:
        yield server


def fleet(server: Served) -> dict[str, Any]:
    return {replica["url"]: replica for replica in server.call("GET", "/v1/fleet").json()["data"]}


def eventually(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.02)


def both_ready(server: Served) -> bool:
    return all(replica["ready"] for replica in fleet(server).values())


def test_the_fleet_is_shown(server: Served, fakes: list[FakeServer]):
    eventually(lambda: both_ready(server))
    assert server.answer("json").status_code == 200
    shown = fleet(server)
    assert shown.keys() == {fake.url for fake in fakes}
    (home,) = (replica for replica in shown.values() if replica["adapters"])
    other = next(replica for replica in shown.values() if replica is not home)
    assert home["adapters"][0].startswith("json--v1-")
    eventually(lambda: fleet(server)[home["url"]]["in_flight"] == 0)
    assert (home["loads"], other["loads"]) == (1, 0)
    assert (home["ready"], home["reason"], home["draining"]) == (True, None, False)
    assert home["started"] == next(fake.fake.started for fake in fakes if fake.url == home["url"])


def test_a_server_with_its_own_engine_has_no_replicas(
    tiny_registry: Path, tiny_adapters: dict[str, Path], tmp_path: Path
):
    with served(tiny_registry, tiny_adapters, tmp_path, EchoEngine()) as server:
        assert server.call("GET", "/v1/fleet").json() == {"object": "list", "data": []}
        refused = server.call("POST", DRAIN, json={"url": "http://127.0.0.1:1"})
        assert (refused.status_code, "--engine" in refused.json()["error"]["message"]) == (400, True)
        assert "adapterhub_replica" not in server.call("GET", "/metrics").text


def test_a_replica_that_drains_gets_no_requests(server: Served, fakes: list[FakeServer]):
    eventually(lambda: both_ready(server))
    server.answer("json")
    home = next(fake for fake in fakes if fake.fake.bodies)
    other = next(fake for fake in fakes if fake is not home)
    drained = server.call("POST", DRAIN, json={"url": home.url}).json()
    assert (drained["url"], drained["draining"], drained["ready"]) == (home.url, True, False)
    for _ in range(3):
        assert server.answer("json").status_code == 200
    assert (len(home.fake.bodies), len(other.fake.bodies)) == (1, 3)
    assert server.call("GET", "/health").status_code == 200
    server.call("POST", DRAIN, json={"url": other.url})
    assert server.call("GET", "/health").status_code == 503
    back = server.call("POST", DRAIN, json={"url": home.url, "draining": False}).json()
    assert (back["draining"], back["ready"]) == (False, True)
    assert server.call("GET", "/health").status_code == 200
    actions = [(one["action"], one["adapter"]) for one in server.audit]
    assert actions == [("drain", home.url), ("drain", other.url), ("undrain", home.url)]


@pytest.mark.parametrize(
    "body", [{}, {"url": ""}, {"url": "http://127.0.0.1:1"}, {"url": 5}, {"url": "x", "b": 1}]
)
def test_bad_drains_change_nothing(server: Served, body: dict[str, Any]):
    assert server.call("POST", DRAIN, json=body).status_code == 400
    assert not any(replica["draining"] for replica in fleet(server).values())


def test_the_fleet_is_for_admins(server: Served):
    assert server.call("GET", "/v1/fleet", ANY).status_code == 403
    assert server.call("POST", DRAIN, ANY, json={}).status_code == 403
    assert server.call("GET", "/v1/fleet", None).status_code == 401


def test_a_server_without_a_replica_is_not_ready(server: Served, fakes: list[FakeServer]):
    eventually(lambda: both_ready(server))
    assert server.call("GET", "/ready", None).json()["status"] == "ready"
    fakes[0].kill()
    eventually(lambda: not fleet(server)[fakes[0].url]["ready"])
    assert server.call("GET", "/health", None).status_code == 200
    fakes[1].kill()
    eventually(lambda: server.call("GET", "/health", None).status_code == 503)
    assert server.call("GET", "/ready", None).json()["status"] == "no replica is ready"
    refused = server.answer("json")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
    assert refused.headers["retry-after"] == "1"
    fakes[1].start()
    eventually(lambda: server.call("GET", "/health", None).status_code == 200)
    assert server.answer("json").status_code == 200


@pytest.mark.parametrize(
    "sync_seconds", [60]
)  # else a probe may find them unavailable before the request does
@pytest.mark.parametrize(
    ("sent", "passed_on"), [("7", "7"), ("120", "120"), ("121", "1"), ("0", "1"), ("soon", "1"), (None, "1")]
)
def test_retry_after_is_passed_on(server: Served, fakes: list[FakeServer], sent: str | None, passed_on: str):
    eventually(lambda: both_ready(server))
    for one in fakes:
        one.fake.retry_after, one.fake.unavailable = sent, True
    refused = server.answer("base")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, passed_on)


def test_request_id_and_trace_go_to_the_replica(server: Served, fakes: list[FakeServer]):
    trace = f"00-{'ab' * 16}-{'cd' * 8}-01"
    body = {"model": "base", "prompt": "Hi", "max_tokens": 3}
    for given in ({"x-request-id": "mine-1", "traceparent": trace}, {"traceparent": "x" * 55}):
        server.call("POST", "/v1/completions", ANY, json=body, headers=given)
    traces = {one["x-request-id"]: one.get("traceparent") for fake in fakes for one in fake.fake.headers}
    assert traces.pop("mine-1") == trace
    ((new_id, no_trace),) = traces.items()
    assert (len(new_id), no_trace) == (32, None)


def test_keys_of_clients_do_not_go_to_the_replica(server: Served, fakes: list[FakeServer]):
    server.answer("base")
    (headers,) = (headers for fake in fakes for headers in fake.fake.headers)
    assert ANY not in str(headers)


def test_metrics_by_replica(server: Served, fakes: list[FakeServer]):
    eventually(lambda: both_ready(server))
    server.answer("json")
    fakes[1].kill()
    eventually(lambda: not fleet(server)[fakes[1].url]["ready"])
    text = server.call("GET", "/metrics").text
    assert fakes[0].url not in text
    assert 'adapterhub_replica_ready{replica="0"} 1.0' in text
    assert 'adapterhub_replica_ready{replica="1"} 0.0' in text
    assert 'adapterhub_replica_failures_total{replica="0"} 0.0' in text
    loads = [line for line in text.splitlines() if line.startswith("adapterhub_replica_adapter_loads_total")]
    assert sum(float(line.split()[-1]) for line in loads) == 1
