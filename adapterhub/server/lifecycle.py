"""How far a server is, from loading its base to shutting down, and how many requests it is answering."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Literal

Stage = Literal["loading the base", "warming up", "ready", "shutting down"]
READY: Final = "ready"


class Lifecycle:
    """The state that probes see and that a shutdown waits for.

    Args:
        stage: Where it begins; an application that is made with its hub is ready at once.

    Attributes:
        running: Requests that are being answered, those of probes left out; counted on the event loop.
    """

    def __init__(self, stage: Stage = READY) -> None:
        self.running = 0
        self._stage: Stage = stage
        self._since = time.monotonic()
        self._draining = False

    @property
    def stage(self) -> Stage:
        """What the server does now."""
        return "shutting down" if self._draining else self._stage

    @property
    def seconds(self) -> float:
        """How long it has been in this stage."""
        return time.monotonic() - self._since

    @property
    def draining(self) -> bool:
        """Whether the server is shutting down: running answers go on, new requests are refused."""
        return self._draining

    def enter(self, stage: Stage) -> None:
        """Goes on to a stage; a shutdown that has begun stays one."""
        self._draining = self._draining or stage == "shutting down"
        self._stage, self._since = stage, time.monotonic()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Counts a request as running for as long as the block runs."""
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
