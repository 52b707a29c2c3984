"""Requests counted and timed by route, with the names and labels of prometheus-fastapi-instrumentator."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
NO_ROUTE = "none"
"""The handler of paths that no route has: they are the client's, so as labels they would be without bound."""
CLIENT_GONE = 499
"""The status of a request whose client left before the answer's head was sent; nginx's number."""


class HttpMetrics:
    """The metrics of HTTP requests.

    Args:
        registry: Where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "http_requests_total",
            "HTTP requests, by route, method and status.",
            ("handler", "method", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "http_request_duration_seconds",
            "Time from a request's head to the last byte of its answer.",
            ("handler", "method"),
            buckets=_SECONDS,
            registry=registry,
        )

    def observe(self, route: str | None, method: str, status: int, seconds: float) -> None:
        """Counts a request that has ended.

        Args:
            route: The path template of its route, such as `/v1/models/{model}`; None if no route has its path.
            method: Its method; unknown ones are counted together.
            status: The status of its answer.
            seconds: How long it took.
        """
        handler, method = route or NO_ROUTE, method if method in _METHODS else "other"
        self._requests.labels(handler, method, str(status)).inc()
        self._seconds.labels(handler, method).observe(seconds)
