"""A real vLLM for slow tests: `ADAPTERHUB_TEST_VLLM` names the program, or the URL of a server that just started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import httpx
import pytest

from adapterhub.base import DEMO_BASE, demo_base_folder

PROGRAM = os.environ.get("ADAPTERHUB_TEST_VLLM")  # read now: a fixture clears the variable
MAX_MODEL_LEN = 512
MAX_LORA_RANK = 32
_START_SECONDS = 600
_ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_TARGET_DEVICE": "cpu",
    "HF_HUB_OFFLINE": "1",
}


class RealVllm:
    """A vLLM with the demo base in float32 on a free port, which `kill` ends as `kill -9` does.

    Args:
        program: The command `vllm`.
        log: Where its output goes.

    Attributes:
        url: Its address, the same after a new `start`.
    """

    def __init__(self, program: str, log: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        self._command = [
            *(program, "serve", str(demo_base_folder()), "--served-model-name", DEMO_BASE),
            *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager"),
            *("--max-model-len", str(MAX_MODEL_LEN), "--enable-lora", "--max-lora-rank", str(MAX_LORA_RANK)),
            # More slots than adapters: on CPUs vLLM 0.32 takes the last slot's weights for rows of the bare base, and
            # an adapter that was unloaded stays in its slot.
            *("--max-loras", "8", "--max-cpu-loras", "8"),
        ]
        self.start()

    def start(self) -> None:
        """Starts it, in a process group of its own, with the engine's process."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                stdout=output,
                stderr=output,
                env=os.environ | _ENVIRONMENT,
                start_new_session=True,
            )

    def wait_until_healthy(self) -> None:
        """Returns once `/health` answers 200; fails the test if it does not in ten minutes."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                pytest.fail(f"vLLM ended: {self._log.read_text(errors='replace')[-2000:]}")
            try:
                if httpx.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.05)
        pytest.fail(f"vLLM has not started within {_START_SECONDS} s.")

    def kill(self) -> None:
        """Ends it and the engine's process at once."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()


@contextmanager
def vllm_process(log: Path) -> Iterator[RealVllm]:
    """Starts vLLM; the test is skipped where there is no program.

    Args:
        log: Where its output goes.
    """
    if not PROGRAM or PROGRAM.startswith("http"):
        pytest.skip("ADAPTERHUB_TEST_VLLM names no vllm program")
    with RealVllm(PROGRAM, log) as server:
        server.wait_until_healthy()
        yield server


@contextmanager
def real_vllm(log: Path) -> Iterator[str]:
    """The URL of the server in `ADAPTERHUB_TEST_VLLM`, or of one that is started as by `vllm_process`."""
    if PROGRAM and PROGRAM.startswith("http"):
        yield PROGRAM
        return
    with vllm_process(log) as server:
        yield server.url
