"""How long an application of Ray Serve takes to start, and the memory that its processes hold while idle.

    python -m benchmarks.ray_application engine=echo replicas=2 num_cpus=0.5
    python -m benchmarks.ray_application base=adapterhub-demo replicas=2

The arguments are those of `serve run adapterhub.deploy.ray:app`. Memory is proportional set size (Linux): pages that
processes share are divided among them, so that the sum is what the application takes from the machine.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import yaml

from adapterhub.demo import demo_registry_folder
from benchmarks.common import machine
from benchmarks.output import table

START_SECONDS = 900
IDLE_SECONDS = 10
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_ADDRESS": "local"}


@contextmanager
def application(arguments: dict[str, str], folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Starts an application by Ray's command and ends it; yields its URL and the command's process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": "hub",
                "route_prefix": "/",
                "import_path": "adapterhub.deploy.ray:app",
                "args": arguments,
            }
        ],
    }
    (folder / "serve.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [str(Path(sys.executable).with_name("serve")), "run", str(folder / "serve.yaml")]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, env=os.environ | ENVIRONMENT, stdout=log, stderr=log) as process,  # noqa: S603
    ):
        try:
            yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGINT)


def wait_until_ready(url: str) -> None:
    """Returns once the application answers."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        try:
            httpx.get(f"{url}/health", timeout=30).raise_for_status()
        except httpx.HTTPError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit("The application does not start.")


def memory_by_kind(process: psutil.Process) -> dict[str, list[int]]:
    """What the processes of an application do -> bytes of each of them."""
    found = defaultdict[str, list[int]](list)
    for one in [process, *process.children(recursive=True)]:
        found[_kind(one)].append(one.memory_full_info().pss)
    return dict(found)


def _kind(process: psutil.Process) -> str:
    title = " ".join(process.cmdline())
    actor = re.match(r"ray::([\w:]+)", title)  # as in "ray::ServeReplica:hub:HubReplica"
    return actor[1].removeprefix("ServeReplica:hub:") if actor else Path(title.split(" ")[0]).name


def main(arguments: Sequence[str] | None = None) -> None:
    """Starts it, waits, and prints."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("arguments", nargs="*", metavar="NAME=VALUE", help="of the application")
    given = dict(one.split("=", 1) for one in options.parse_args(arguments).arguments)
    with tempfile.TemporaryDirectory() as folder:
        started, processor = time.monotonic(), machine("cpu")["processor"]
        with application({"registry": str(demo_registry_folder()), **given}, Path(folder)) as (url, process):
            wait_until_ready(url)
            seconds = time.monotonic() - started
            time.sleep(IDLE_SECONDS)
            found = memory_by_kind(process)
    print(f"{processor}, load {os.getloadavg()[0]:.1f}: ready after {seconds:.0f} s")
    rows = [[kind, len(each), sum(each) / 2**20] for kind, each in sorted(found.items())]
    table(["process", "how many", "MiB"], [*rows, ["all", None, sum(row[2] for row in rows)]])  # type: ignore[misc]


if __name__ == "__main__":
    main()
