"""A real vLLM, started with the launch file, answers as the hub does; needs the command `vllm`."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from adapterhub import AdapterHub, AdapterRegistry
from adapterhub.export import export_vllm

ADAPTERS = Path(__file__).parents[2] / "adapters"
REQUESTS = {
    "json": "Make JSON with the keys name, city: Anna Meier lives in Basel and is 34.",
    "support": "My Zorbex printer does not turn on.",
    "json:0.6+support:0.4": "My Zorbex printer does not turn on.",
    "adapterhub-demo": "My Zorbex printer does not turn on.",
}


@contextmanager
def vllm_server(folder: Path) -> Iterator[str]:
    """Starts vLLM in a folder with a launch file, and yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--max-model-len", "512"]
    command = ["vllm", "serve", "--config", "vllm.yaml", "--dtype", "bfloat16", *options]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        while server.poll() is None:
            try:
                get(f"{address}/v1/models")
                break
            except urllib.error.URLError:
                time.sleep(1)
        assert server.poll() is None, (folder / "server.log").read_text()[-2000:]
        yield address
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # with its workers; while it starts it heeds no other signal
        server.wait()


def get(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(
        urllib.request.Request(url, data, {"Content-Type": "application/json"})
    ) as answer:
        return json.load(answer)


@pytest.mark.slow  # starts a server
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("vllm") is None, reason="needs the command vllm")
def test_it_answers_as_the_hub_does(tmp_path: Path):
    names = [name for name in REQUESTS if name != "adapterhub-demo"]
    export_vllm(AdapterRegistry(ADAPTERS), tmp_path / "out", names)
    hub = AdapterHub.from_pretrained(registry=ADAPTERS, quantization=None)
    with vllm_server(tmp_path / "out") as address:
        assert {model["id"] for model in get(f"{address}/v1/models")["data"]} == REQUESTS.keys()
        for model, text in REQUESTS.items():
            request = {"model": model, "messages": [{"role": "user", "content": text}]}
            answer = get(f"{address}/v1/chat/completions", {**request, "temperature": 0, "max_tokens": 60})
            adapter = model if model in names else None
            expected = hub.generate(text, adapter, temperature=0, max_tokens=60).text
            assert answer["choices"][0]["message"]["content"] == expected
