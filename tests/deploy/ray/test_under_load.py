"""More load than one replica takes: Ray starts another one, or clients are told to come again."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import httpx
import pytest

pytest.importorskip("ray", reason="Ray is not installed: `make test-ray` installs it")
from ray import serve

from adapterhub.deploy.ray import application
from tests.deploy.ray.conftest import Running, start
from tests.deploy.ray.traffic import ASK, LONG, Traffic, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # Ray takes half a minute to start, or more


def answers_of(running: Running, requests: int) -> list[httpx.Response]:
    """The answers to long requests that arrive one after the other, each long before the first is answered."""
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(httpx.post(f"{running.url}/v1/completions", json=LONG, timeout=120))

    threads = [threading.Thread(target=ask) for _ in range(requests)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    return answers


def test_what_neither_a_replica_nor_the_queue_has_room_for_is_told_to_come_again(
    serve_url: str, tmp_path: Path
):
    running = start(serve_url, tmp_path, "/full", num_cpus=0.25, max_batch_size=1, max_queue=2)
    answers = answers_of(running, 8)
    refused = [one for one in answers if one.status_code != 200]
    assert len(answers) - len(refused) == 4  # two on the replica, two that wait
    for one in refused:
        assert (one.status_code, one.headers["retry-after"]) == (429, "1")
        assert one.json()["error"]["message"].startswith("All replicas are busy")
    with running.client() as client:
        assert client.post("/v1/completions", json=ASK).status_code == 200
    serve.delete("full")


def test_a_replica_is_added_under_load_and_removed_after_it(
    serve_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(application, "_DOWNSCALE_SECONDS", 2.0)  # Ray's mean is that of 30 s, which pass too
    running = start(
        serve_url, tmp_path, "/scaled", num_cpus=0.25, max_batch_size=2, replicas=1, max_replicas=2
    )

    def replicas() -> int:
        return (
            serve.status().applications["scaled"].deployments["HubReplica"].replica_states.get("RUNNING", 0)
        )

    assert replicas() == 1
    with Traffic(running, ["json"]) as light:
        with Traffic(running, ["code", "support"] * 4) as heavy:
            print(f"a replica more after {wait_until(lambda: replicas() == 2, 240):.0f} s")
        print(f"one less after {wait_until(lambda: replicas() == 1, 240):.0f} s")
    assert {text for *_, text in light.answers} == {"[json@1] Hello"}
    assert {text for *_, text in heavy.answers} == {"[code@1] Hello", "[support@1] Hello"}
    serve.delete("scaled")
