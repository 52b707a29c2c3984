"""Two replicas and a front on a Ray of this machine, over Ray's own HTTP proxy."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable

import httpx
import pytest

pytest.importorskip("ray", reason="Ray is not installed: `make test-ray` installs it")

from adapterhub import AdapterRegistry
from tests.deploy.ray.conftest import ROOT, Running
from tests.deploy.ray.recording import TOKEN_SECONDS
from tests.deploy.ray.traffic import LONG, Traffic, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # Ray takes half a minute to start, or more
_SERIES = re.compile(r"^(\w[\w:]*)\{(.*)\} (\S+)$")


def figures(client: httpx.Client, name: str, **labels: str) -> dict[str, float]:
    """A metric: name of each replica -> its value, of series with these labels."""
    found: dict[str, float] = {}
    for line in client.get("/metrics").text.splitlines():
        series = _SERIES.match(line)
        if series and series[1] == name and all(f'{k}="{v}"' in series[2] for k, v in labels.items()):
            replica = re.search(r'replica="([^"]+)"', series[2])
            assert replica
            found[replica[1]] = found.get(replica[1], 0) + float(series[3])
    return found


def test_the_api_is_the_servers(running: Running):
    with running.client() as client:
        answer = client.post("/v1/completions", json={"model": "json", "prompt": "Hello"})
        assert answer.json()["choices"][0]["text"].startswith("[json@1]")
        assert answer.headers["x-adapterhub-adapter"] == "json"
        assert "," not in answer.headers["x-request-id"]
        unknown = client.post("/v1/completions", json={"model": "nope", "prompt": "Hello"})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
        assert "json" in [one["id"] for one in client.get("/v1/models").json()["data"]]
        assert client.get("/health").status_code == 200


def test_metrics_are_of_both_replicas(running: Running):
    with running.client() as client:
        assert len(figures(client, "vllm:num_requests_running")) == 2


def test_tokens_come_as_they_are_generated(running: Running):
    times = []
    with (
        running.client() as client,
        client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer,
    ):
        times = [time.monotonic() for line in answer.iter_lines() if line.startswith("data: {")]
    assert len(times) == 400
    assert times[-1] - times[0] > 250 * TOKEN_SECONDS


def leave_whole_answer(client: httpx.Client) -> None:
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/completions", json=LONG, timeout=1)


def leave_stream(client: httpx.Client) -> None:
    with client.stream("POST", "/v1/completions", json={**LONG, "stream": True}) as answer:
        next(answer.iter_lines())


@pytest.mark.parametrize("leave", [leave_whole_answer, leave_stream])
def test_a_client_that_leaves_ends_its_answer_in_the_engine(
    running: Running, leave: Callable[[httpx.Client], None]
):
    def aborted() -> float:
        return sum(figures(client, "vllm:request_success_total", finished_reason="abort").values())

    with running.client() as client:
        before = aborted()
        leave(client)
        wait_until(lambda: sum(figures(client, "vllm:num_requests_running").values()) == 0)
        assert aborted() == before + 1


@pytest.mark.alone
def test_an_adapter_registered_under_traffic_is_served_by_both_replicas_within_two_seconds(running: Running):
    def served() -> dict[str, float]:
        return figures(client, "adapterhub_adapter_generation_tokens_total", adapter="fresh")

    with running.client() as client, Traffic(running, ["json", "support"]) as traffic:
        time.sleep(1)
        AdapterRegistry(running.registry).register("fresh", ROOT / "adapters" / "json" / "1")
        registered = time.monotonic()
        with Traffic(running, ["fresh"] * 8) as fresh:
            wait_until(lambda: len(served()) == 2 and all(served().values()))
            assert time.monotonic() - registered < 2
    assert {text for *_, text in fresh.answers} == {"[fresh@1] Hello"}
    assert {text for *_, text in traffic.answers} == {"[json@1] Hello", "[support@1] Hello"}


def test_a_killed_replica_loses_the_requests_in_flight_on_it_at_most_and_is_replaced(running: Running):
    adapters = [name for name in ("json", "code", "support", "tools") for _ in range(2)]
    started = running.replica_processes()
    victim, *_ = started
    with Traffic(running, adapters) as traffic:
        time.sleep(1)
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        time.sleep(4)
    lost = [(began, ended) for began, ended, _, text in traffic.answers if text is None]
    assert all(began < killed < ended for began, ended in lost)
    assert len(lost) < len(adapters)
    right = [text == f"[{adapter}@1] Hello" for _, _, adapter, text in traffic.answers if text is not None]
    assert all(right)
    assert sum(began > killed for began, *_ in traffic.answers) > 8  # the other one went on
    wait_until(lambda: len(running.replica_processes()) > len(started), 120)
    with running.client() as client:
        wait_until(lambda: len(figures(client, "vllm:num_requests_running")) == 2, 120)
