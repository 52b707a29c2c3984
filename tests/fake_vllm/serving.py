"""The fake on 127.0.0.1: in a thread of this process, or as a process that can be killed."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Self

import uvicorn

from tests.fake_vllm.app import FakeVllm


class FakeServer:
    """A fake in a thread, which can go away and come back at the same address.

    Attributes:
        fake: What answers.
        url: Its address.
    """

    def __init__(self, fake: FakeVllm) -> None:
        self.fake = fake
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listens."""
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", self._port))
        listening.listen(1024)
        self._port = listening.getsockname()[1]
        config = uvicorn.Config(self.fake, log_level="critical", lifespan="off", access_log=False)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listening]}, name="fake-vllm"
        )
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.001)

    def kill(self) -> None:
        """Cuts all connections and listens no more; what was loaded is forgotten."""
        self._stop()
        self.fake.restart()

    def _stop(self) -> None:
        for connection in list(self._server.server_state.connections):
            loop = connection.loop  # type: ignore[union-attr]
            loop.call_soon_threadsafe(connection.transport.abort)  # type: ignore[union-attr]
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread.is_alive():
            self._stop()


@contextmanager
def serving(*fakes: FakeVllm) -> Iterator[list[str]]:
    """Serves fakes, each on a free port; yields their URLs."""
    with ExitStack() as stack:
        yield [stack.enter_context(FakeServer(fake)).url for fake in fakes]


class FakeProcess:
    """A fake in a process of its own, which `kill` ends as `kill -9` does.

    Attributes:
        url: Its address, the same after a new `start`.
    """

    def __init__(self, *, token_seconds: float = 0.0) -> None:
        self._token_seconds = token_seconds
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Starts it; returns once it listens."""
        arguments = [str(self._port), str(self._token_seconds)]
        command = [sys.executable, "-m", "tests.fake_vllm", *arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout
        self._port = int(self._process.stdout.readline())

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
