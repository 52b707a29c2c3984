"""Service times of vLLM on this machine's processors: steps by rows and adapters, prompts, and loading an adapter.

    python -m benchmarks.fleet_simulation.measuring_vllm path/to/vllm --write vllm-demo

vLLM is started with the demo's base in float32 on one thread. Times are processor time of its engine's processes, so
that other programs on the machine, and vLLM's own HTTP server, add little. A merged model is taken to cost what the
bare base costs in this server.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import psutil

from adapterhub.base import DEMO_BASE, demo_base_folder
from adapterhub.demo import demo_registry_folder
from adapterhub.lora.request import StoredLoraRequest
from adapterhub.peft_format.config import CONFIG_FILE
from benchmarks.common import machine, twins
from benchmarks.fleet_simulation.service_times import Measured, ServiceTimes, fit, record
from benchmarks.output import progress

PROMPTS = (32, 288)
"""Two lengths of a prompt, whose difference is what more tokens cost."""
ANSWERS = (2, 66)
"""Two lengths of an answer, whose difference is what steps cost."""
SLOTS = 8
START_SECONDS = 1800
ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_TARGET_DEVICE": "cpu",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


class Vllm:
    """A vLLM that runs.

    Args:
        url: Its address.
        process: Its process, whose child is the engine.
        rounds: How often everything is measured.
    """

    def __init__(self, url: str, process: psutil.Process, rounds: int) -> None:
        self._client = httpx.Client(base_url=url, timeout=120)
        self._engine = process.children(recursive=True)
        self._rounds = rounds

    @property
    def version(self) -> str:
        """Its release."""
        return str(self._client.get("/version").json()["version"])

    def seconds(self, do: Callable[[], object]) -> float:
        """Processor time of the engine for something, median of the rounds; the first is not counted."""
        return statistics.median([self.once(do) for _ in range(self._rounds + 1)][1:])

    def once(self, do: Callable[[], object]) -> float:
        """The same of a single time."""
        before = self._processor_time()
        do()
        return self._processor_time() - before

    def _processor_time(self) -> float:
        return sum(sum(one.cpu_times()[:2]) for one in self._engine)

    def answer(self, models: Sequence[str], prompt: int, tokens: int) -> None:
        """Sends a request for each model at once, and waits for all answers."""
        with ThreadPoolExecutor(len(models)) as threads:
            list(threads.map(lambda model: self._complete(model, prompt, tokens), models))

    def _complete(self, model: str, prompt: int, tokens: int) -> None:
        body = {
            "model": model,
            "prompt": random.choices(range(3, 250), k=prompt),
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
        }
        self._client.post("/v1/completions", json=body).raise_for_status()

    def load(self, adapter: StoredLoraRequest) -> None:
        """Loads an adapter."""
        body = {"lora_name": adapter.name, "lora_path": str(adapter.folder)}
        self._client.post("/v1/load_lora_adapter", json=body).raise_for_status()

    def step_seconds(self, models: Sequence[str]) -> float:
        """Of a step with a row for each model."""
        short, long = (
            self.seconds(lambda count=count: self.answer(models, PROMPTS[0], count))  # type: ignore[misc]
            for count in ANSWERS
        )
        return (long - short) / (ANSWERS[1] - ANSWERS[0])


@contextmanager
def running(options: argparse.Namespace, adapters: int) -> Iterator[Vllm]:
    """Starts vLLM on a free port with the demo's base and room for some adapters in host memory, and ends it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    command = [
        *(options.vllm, "serve", str(demo_base_folder()), "--served-model-name", DEMO_BASE),
        *("--host", "127.0.0.1", "--port", port, "--dtype", "float32", "--enforce-eager"),
        *("--max-model-len", "512", "--max-num-seqs", str(max(options.rows)), "--no-enable-prefix-caching"),
        *(
            "--enable-lora",
            "--max-lora-rank",
            "32",
            "--max-loras",
            str(SLOTS),
            "--max-cpu-loras",
            str(adapters),
        ),
    ]
    with subprocess.Popen(  # noqa: S603  the user names the program
        command,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_healthy(url, process)
            yield Vllm(url, psutil.Process(process.pid), options.rounds)
        finally:
            process.terminate()


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(f"{url}/health").raise_for_status()
        except httpx.HTTPError:
            time.sleep(1)
        else:
            return
    raise SystemExit("vLLM does not start.")


def measure(options: argparse.Namespace, scratch: Path) -> tuple[ServiceTimes, dict[str, Any]]:
    """The service times of vLLM, and how well they fit what was measured."""
    random.seed(0)
    shipped = [file.parent for file in sorted(demo_registry_folder().glob(f"*/*/{CONFIG_FILE}"))]
    adapters = twins(shipped, 4 * SLOTS, scratch)
    progress("vLLM starts")
    with running(options, len(adapters)) as vllm:
        load = _load_seconds(vllm, adapters)
        slot_load = _slot_seconds(vllm, [one.name for one in adapters])
        with_lora = _steps(vllm, [one.name for one in adapters], options.rows)
        bare: Measured = {(rows, 0): vllm.step_seconds([DEMO_BASE] * rows) for rows in options.rows}
        prompt = [vllm.seconds(lambda size=size: vllm.answer(["a0"], size, 1)) for size in PROMPTS]  # type: ignore[misc]
        version = vllm.version
    (step, row, adapter), off = fit(with_lora)
    (base_step, base_row, _), _ = fit(bare)
    times = ServiceTimes(
        step=step,
        row=row,
        adapter=adapter,
        prefill_token=(prompt[1] - prompt[0]) / (PROMPTS[1] - PROMPTS[0]),
        slot_load=slot_load,
        disk_load=load - slot_load,
        disk_load_stops_steps=True,
        base_step=base_step,
        base_row=base_row,
    )
    steps = {f"{rows} rows, {count} adapters": 1000 * taken for (rows, count), taken in with_lora.items()}
    rounded = {name: round(taken, 3) for name, taken in steps.items()}
    return times, {"version": version, "steps_ms": rounded, "fit_off": off}


def _load_seconds(vllm: Vllm, adapters: Sequence[StoredLoraRequest]) -> float:
    """From disk, in the page cache, to a slot: vLLM loads into both host memory and a slot."""
    progress("loads")
    unloaded = iter(adapters)
    vllm.load(next(unloaded))  # the first one makes buffers
    together = vllm.once(lambda: [vllm.load(one) for one in unloaded])  # a tick of the clock is 10 ms
    return together / (len(adapters) - 1)


def _slot_seconds(vllm: Vllm, names: Sequence[str]) -> float:
    """From host memory to a slot: requests of a token whose adapters never are in a slot, and always."""
    progress("slots")
    cycle = itertools.cycle(names)
    missing = vllm.seconds(lambda: [vllm.answer([next(cycle)], 1, 1) for _ in names])
    present = vllm.seconds(lambda: [vllm.answer([names[0]], 1, 1) for _ in names])
    return (missing - present) / len(names)


def _steps(vllm: Vllm, names: Sequence[str], all_rows: Sequence[int]) -> Measured:
    found = Measured()
    for rows in all_rows:
        for count in sorted({1, max(1, rows // 4), min(rows, SLOTS)}):
            progress(f"{rows} rows, {count} adapters")
            found[rows, count] = vllm.step_seconds([names[row % count] for row in range(rows)])
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints, and records."""
    commands = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands.add_argument("vllm", help="the program")
    commands.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 32])
    commands.add_argument("--rounds", type=int, default=3)
    commands.add_argument("--write", metavar="NAME", help="record the times under this name")
    options = commands.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        times, fitted = measure(options, Path(scratch))
    where = machine("cpu")
    told = {key: where[key] for key in ("processor", "instructions", "load")}
    about = {
        "what": "vLLM with adapterhub-demo in float32",
        "clock": "cpu",
        "machine": {**told, "threads": 1, "versions": {"vllm": fitted.pop("version")}},
        **fitted,
    }
    if options.write:
        record(options.write, times, about)
    print(json.dumps({"about": about, "times": asdict(times)}, indent=2))


if __name__ == "__main__":
    main()
