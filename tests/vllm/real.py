"""A real vLLM for slow tests: `ADAPTERHUB_TEST_VLLM` names the program, or the URL of a server that just started."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from adapterhub.base import DEMO_BASE, demo_base_folder

PROGRAM = os.environ.get("ADAPTERHUB_TEST_VLLM")
MAX_MODEL_LEN = 512
MAX_LORA_RANK = 32
_START_SECONDS = 600


@contextmanager
def real_vllm(log: Path, *options: str) -> Iterator[str]:
    """Starts vLLM with the demo base in float32; yields its URL. The test is skipped where there is no vLLM.

    Args:
        log: Where its output goes.
        *options: Further options of `vllm serve`.
    """
    if not PROGRAM:
        pytest.skip("ADAPTERHUB_TEST_VLLM names no vllm program")
    if PROGRAM.startswith("http"):
        yield PROGRAM
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        *(PROGRAM, "serve", str(demo_base_folder()), "--served-model-name", DEMO_BASE),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"),
        *("--max-model-len", str(MAX_MODEL_LEN), "--enable-lora", "--max-lora-rank", str(MAX_LORA_RANK)),
        # More slots than adapters: on CPUs vLLM 0.32 takes the last slot's weights for rows of the bare base, and an
        # adapter that was unloaded stays in its slot.
        *("--max-loras", "8", "--max-cpu-loras", "8", *options),
    ]
    environment = os.environ | {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_TARGET_DEVICE": "cpu",
        "HF_HUB_OFFLINE": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_healthy(url, process, log)
        yield url
    finally:
        process.terminate()
        process.wait()


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"vLLM ended: {log.read_text(errors='replace')[-2000:]}")
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    pytest.fail(f"vLLM has not started within {_START_SECONDS} s.")
