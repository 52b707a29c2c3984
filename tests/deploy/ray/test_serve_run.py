"""`serve run` as a process: from a configuration file to an answer, and to its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

pytest.importorskip("ray", reason="Ray is not installed: `make test-ray` installs it")

from tests.deploy.ray.conftest import RAY_ENVIRONMENT, ROOT, free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # Ray takes half a minute to start, or more
ASK = {
    "model": "json",
    "messages": [{"role": "user", "content": "Name: Ada, city: London"}],
    "max_tokens": 48,
}


@contextmanager
def serve_run(folder: Path, arguments: dict[str, Any]) -> Iterator[httpx.Client]:
    """Runs the application from a configuration file; yields a client of it once it is ready."""
    port = free_port()
    application = {
        "name": "hub", "route_prefix": "/", "import_path": "adapterhub.deploy.ray:app", "args": arguments
    }  # fmt: skip
    config = {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]}
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    command = [str(Path(sys.executable).with_name("serve")), "run", str(folder / "serve.yaml")]
    environment = {**os.environ, **RAY_ENVIRONMENT, "RAY_ADDRESS": "local"}
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        try:
            _wait_until_ready(client, process)
            yield client
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def _wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "serve run has ended"
        try:
            if client.get("/health").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    pytest.fail("serve run is not ready")


def test_one_command_serves(tmp_path: Path):
    arguments = {"engine": "echo", "registry": str(ROOT / "adapters"), "num_cpus": 0.5}
    with serve_run(tmp_path, arguments) as client:
        answer = client.post("/v1/chat/completions", json=ASK).json()
    assert answer["choices"][0]["message"]["content"].startswith("[json@1]")


def test_two_replicas_of_the_demo_base_answer_as_the_hub(tmp_path: Path):
    from adapterhub import AdapterHub

    arguments = {"registry": str(ROOT / "adapters"), "base": "adapterhub-demo", "replicas": 2}
    with serve_run(tmp_path, arguments) as client:
        served = [
            client.post("/v1/chat/completions", json={**ASK, "model": name}) for name in ("json", "support")
        ]
    with AdapterHub.from_pretrained("adapterhub-demo", ROOT / "adapters") as hub:
        expected = [hub.generate(ASK["messages"], name, max_tokens=48).text for name in ("json", "support")]
    assert [one.json()["choices"][0]["message"]["content"] for one in served] == expected
