"""The simulation beside servers over HTTP: the same requests, choices by the same function, predicted and measured.

    python -m benchmarks.fleet_simulation.validating_http

Each replica is an `adapterhub serve` of its own, with the demo's base and copies of the shipped adapters. The first
prediction is made with the service times that were recorded (`demo`), the second with those times as many times as long
as a lone request took here, just before the run, than they say: what HTTP and other programs on the machine add.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx

from adapterhub import AdapterRegistry
from adapterhub.demo import demo_registry_folder
from adapterhub.engine.interface import Request
from adapterhub.peft_format.config import CONFIG_FILE
from benchmarks.common import twins
from benchmarks.fleet_simulation.replica import ReplicaLimits, SimulatedRequest
from benchmarks.fleet_simulation.service_times import ServiceTimes, recorded
from benchmarks.fleet_simulation.simulation import figures, simulate
from benchmarks.fleet_simulation.validating import (
    KnownReplica,
    compared,
    limits_of,
    measure,
    parser_of,
    show,
    trace_of,
)
from benchmarks.output import progress

START_SECONDS = 600
LONE_REQUESTS = 20
LONE_TOKENS = 32
VOCABULARY = 250
"""Fewer than the demo's base has."""
COMPARED = (
    "slot_hit_rate",
    "first_token_p50",
    "first_token_p95",
    "latency_p50",
    "latency_p99",
    "tokens_per_second",
)
_FIGURE = re.compile(r"^adapterhub_lora_slot_(hits|loads)_total(?:\{.*\})? (\S+)$", re.MULTILINE)


class HttpReplica(KnownReplica):
    """A server, and what a front knows of it.

    Args:
        name: Its name.
        url: Its address.
        limits: Its sizes.
    """

    def __init__(self, name: str, url: str, limits: ReplicaLimits) -> None:
        super().__init__(name, limits)
        self.url, self._client = url, httpx.AsyncClient(base_url=url, timeout=120)

    async def answer(self, request: SimulatedRequest, asked: Request, zero: float) -> None:
        """Answers a request, and notes when."""
        self.begin(request)
        body = {
            "model": request.adapter,
            "prompt": list(asked.prompt),
            "max_tokens": request.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
        async with self._client.stream("POST", "/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    request.end = time.perf_counter() - zero
                    if request.first_token != request.first_token:  # not a number yet
                        request.first_token = request.end
        self.end()

    def slot_hits(self) -> tuple[int, int]:
        """How many requests found their adapter in a slot, and how many did not."""
        found = dict(_FIGURE.findall(httpx.get(f"{self.url}/metrics").text))
        return int(float(found["hits"])), int(float(found["loads"]))


@contextmanager
def servers(registry: Path, limits: ReplicaLimits, count: int) -> Iterator[list[str]]:
    """Starts servers; yields their URLs once all answer."""
    with ExitStack() as started:
        urls = [started.enter_context(_server(registry, limits)) for _ in range(count)]
        for url in urls:
            _wait_until_ready(url)
        yield urls


@contextmanager
def _server(registry: Path, limits: ReplicaLimits) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    sizes = {
        "--max-loras": limits.max_loras,
        "--max-cpu-loras": limits.max_cpu_loras,
        "--max-batch-size": limits.max_num_seqs,
        "--max-num-batched-tokens": limits.max_num_batched_tokens,
        "--max-queue": limits.max_in_flight,
    }
    given = [word for flag, size in sizes.items() for word in (flag, str(size))]
    command = [sys.executable, "-m", "adapterhub.cli.main", "serve", "--base", "adapterhub-demo"]
    with subprocess.Popen(  # noqa: S603  this library
        [*command, "--registry", str(registry), "--port", port, *given],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{url}/health").raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.2)
        else:
            return
    raise SystemExit("A server does not start.")


def slowdown(urls: Sequence[str], adapter: str, prompt: int, times: ServiceTimes) -> float:
    """How many times as long as the service times say a request takes that is alone, median."""
    body = {"model": adapter, "max_tokens": LONE_TOKENS, "ignore_eos": True}
    taken = []
    for number in range(LONE_REQUESTS):
        started = time.perf_counter()
        answer = httpx.post(
            f"{urls[number % len(urls)]}/v1/completions",
            json={**body, "prompt": [3 + number, *range(4, 3 + prompt)]},  # none is in a prefix cache
            timeout=120,
        )
        answer.raise_for_status()
        taken.append(time.perf_counter() - started)
    alone = times.step_seconds(1, 1, prompt) + (LONE_TOKENS - 1) * times.step_seconds(1, 1)
    return statistics.median(taken) / alone


def slower(times: ServiceTimes, factor: float) -> ServiceTimes:
    """All of them so many times as long."""
    seconds = {name: value for name, value in asdict(times).items() if isinstance(value, float)}
    return replace(times, **{name: factor * value for name, value in seconds.items()})


def validate(options: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    """For each policy and figure: predicted, measured, and the error."""
    registry = AdapterRegistry(scratch / "registry")
    shipped = [file.parent for file in sorted(demo_registry_folder().glob(f"*/*/{CONFIG_FILE}"))]
    for number, adapter in enumerate(twins(shipped, options.adapters, scratch / "twins")):
        registry.register(f"adapter-{number}", adapter.folder)
    trace, limits, times = trace_of(options), limits_of(options), recorded("demo")
    results = []
    for policy in options.policies:
        progress(f"{policy}: {trace.at[-1]:.0f} s")
        with servers(registry.root, limits, options.replicas) as urls:
            factor = slowdown(urls, trace.names[0], trace.prompt_tokens, times)
            progress(f"a lone request takes {factor:.2f} times as long as recorded")
            replicas = [HttpReplica(f"replica-{number}", url, limits) for number, url in enumerate(urls)]
            measured = measure(trace, replicas, policy, VOCABULARY)
        predicted = [
            figures(simulate(trace, replicas=options.replicas, policy=policy, times=one, limits=limits), 0)
            for one in (times, slower(times, factor))
        ]
        results += compared(policy, measured, predicted, COMPARED)
    return results


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs both, and prints them side by side."""
    options = parser_of(__doc__).parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        found = validate(options, Path(scratch))
    show(found, "slowed down", options)


if __name__ == "__main__":
    main()
