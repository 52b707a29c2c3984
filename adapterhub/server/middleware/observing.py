"""Counts and times every request, and gives each inference request its span.

The outermost of the middleware, so that it sees what the others answer themselves.
"""

from __future__ import annotations

import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapterhub.server.metrics import CLIENT_GONE, RequestSpan, ServerMetrics
from adapterhub.server.middleware.paths import path_of


class ObservingMiddleware:
    """Observes HTTP requests from their head to the end of their answer.

    The span, if there is one, is `request.state.span`.

    Args:
        app: What answers.
        metrics: What counts.
    """

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on and observes it; see the ASGI specification."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), CLIENT_GONE
        span = scope.setdefault("state", {})["span"] = self._span(scope)

        async def send_observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        except Exception:
            status = 500 if status == CLIENT_GONE else status  # the answer is made outside of all middleware
            raise
        finally:
            route = getattr(scope.get("route"), "path", None)
            self._metrics.http.observe(route, scope["method"], status, time.perf_counter() - started)
            if span:
                span.end(status, scope["state"].get("error_code"))

    def _span(self, scope: Scope) -> RequestSpan | None:
        spans = self._metrics.spans
        is_post = spans is not None and scope["method"] == "POST"
        return spans.start(path_of(scope), Headers(scope=scope)) if spans and is_post else None
