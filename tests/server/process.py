"""A server in a process of its own, to be sent signals."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.waiting import wait_for

_SERVE = """
import sys, threading
from adapterhub import AdapterHub, AdapterRegistry, EchoEngine
from adapterhub.errors import EngineClosedError
from adapterhub.server import ServerConfig, serve

class Engine(EchoEngine):
    closed = False

    def stream(self, request):
        for output in super().stream(request):
            if self.closed:
                raise EngineClosedError("The engine is closed.")
            yield output

    def close(self):
        self.closed = True

def report(text):
    print(text, flush=True)

def open_hub():
    {before_loading}
    return AdapterHub(Engine(token_seconds={token_seconds}), AdapterRegistry(sys.argv[1]))

sys.exit(1 if serve(open_hub, ServerConfig(port=0, drain_seconds={drain_seconds}), report) else 0)
"""


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    url: str
    process: subprocess.Popen[str]

    def wait_until_ready(self) -> None:
        """Returns once it takes requests."""
        wait_for(lambda: httpx.get(f"{self.url}/ready").status_code == 200)


@contextmanager
def serving(
    registry: Path,
    *,
    token_seconds: float = 0.02,
    drain_seconds: float = 60,
    before_loading: str = "pass",
) -> Iterator[Server]:
    """Starts a server on an echo engine; it is killed at the end if it has not ended by itself.

    Args:
        registry: The adapters.
        token_seconds: What a token takes.
        drain_seconds: As in `ServerConfig`.
        before_loading: What it does first in the thread that loads.
    """
    code = _SERVE.format(
        token_seconds=token_seconds, drain_seconds=drain_seconds, before_loading=before_loading
    )
    command = [sys.executable, "-c", code, str(registry)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            yield Server(process.stdout.readline().removeprefix("Listening on ").strip(), process)
        finally:
            process.kill()
