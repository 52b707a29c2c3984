"""Clients of a running application."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import httpx

from tests.deploy.ray.conftest import Running

ASK = {"model": "json", "prompt": "Hello", "max_tokens": 50}
LONG = {"model": "json", "prompt": "x" * 400, "max_tokens": 400}


def wait_until(true: Callable[[], bool], seconds: float = 20) -> float:
    """Waits for it; returns how long it took."""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < seconds
        time.sleep(0.05)
    return time.monotonic() - started


class Traffic:
    """Clients that ask again and again, each its own adapter.

    Attributes:
        answers: When each request began and ended, its adapter and its answer; None if it failed.
    """

    def __init__(self, running: Running, adapters: list[str]) -> None:
        self.answers: list[tuple[float, float, str, str | None]] = []
        self._running = running
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=[adapter]) for adapter in adapters]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, adapter: str) -> None:
        with self._running.client() as client:
            while not self._stop.is_set():
                began = time.monotonic()
                try:
                    answer = client.post("/v1/completions", json={**ASK, "model": adapter})
                    text = answer.json()["choices"][0]["text"] if answer.status_code == 200 else None
                except httpx.HTTPError:
                    text = None
                self.answers.append((began, time.monotonic(), adapter, text))
