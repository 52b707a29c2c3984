"""A circuit breaker: a server that failed gets no requests until it has answered a probe."""

from __future__ import annotations

from dataclasses import dataclass, field

FIRST_DELAY = 0.5
MAX_DELAY = 10.0


@dataclass
class Circuit:
    """Whether a server takes requests. Open until the first probe.

    Attributes:
        reason: Why it takes none; None if it does.
        failures: How often it opened because the server failed.
    """

    reason: str | None = "not asked yet"
    failures: int = 0
    _in_a_row: int = field(default=0, init=False)

    @property
    def closed(self) -> bool:
        """Whether the server takes requests."""
        return self.reason is None

    @property
    def delay(self) -> float:
        """Seconds until the next probe: none after a first failure, then twice as many each time."""
        if self._in_a_row == 1:
            return 0.0
        return float(min(FIRST_DELAY * 2 ** max(self._in_a_row - 2, 0), MAX_DELAY))

    def open(self, reason: str) -> None:
        """The server failed."""
        self.reason = reason
        self.failures += 1
        self._in_a_row += 1

    def half_open(self) -> None:
        """It answered a probe; the delay is forgotten only when it has answered a request too."""
        self.reason = None

    def succeeded(self) -> None:
        """It answered a request."""
        self._in_a_row = 0
