"""How many requests a key may send and run: a token bucket, and a count."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adapterhub.server.access.errors import KeyLimitError
from adapterhub.server.access.keys import ApiKey


class KeyLimits:
    """The usage of each key. Called from the event loop only.

    The bucket of a key holds the requests of one minute, so that many of one burst, and is refilled evenly
    (https://en.wikipedia.org/wiki/Token_bucket).

    Args:
        clock: Seconds of a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[bytes, tuple[float, float]] = {}  # digest -> tokens, when they were counted
        self._running: dict[bytes, int] = {}

    @contextmanager
    def request(self, key: ApiKey) -> Iterator[None]:
        """Counts one request of a key while it runs.

        Raises:
            KeyLimitError: The key may send or run no more at present; nothing is counted.
        """
        running, limit = self._running.get(key.digest, 0), key.max_concurrent_requests
        if limit is not None and running >= limit:
            raise KeyLimitError(
                f"The key {key.name!r} may run {limit} requests at once.",
                hint="Wait until one of them has ended.",
            )
        self._take(key)
        self._running[key.digest] = running + 1
        try:
            yield
        finally:
            self._running[key.digest] -= 1
            if not self._running[key.digest]:
                del self._running[key.digest]

    def _take(self, key: ApiKey) -> None:
        rate = key.requests_per_minute
        if rate is None:
            return
        now = self._clock()
        tokens, counted = self._buckets.get(key.digest, (float(rate), now))
        tokens = min(float(rate), tokens + (now - counted) * rate / 60)
        if tokens < 1:
            self._buckets[key.digest] = tokens, now
            wait = math.ceil((1 - tokens) * 60 / rate)
            raise KeyLimitError(
                f"The key {key.name!r} may send {rate} requests a minute.",
                hint=f"Try again in {wait} s.",
                retry_after=wait,
            )
        self._buckets[key.digest] = tokens - 1, now
