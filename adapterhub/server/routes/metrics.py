"""`/metrics`: what Prometheus and inference gateways scrape."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from adapterhub.server.state import State

router = APIRouter()


@router.get("/metrics", tags=["operations"], response_class=Response)
def metrics(request: Request, state: State) -> Response:
    """The metrics in Prometheus' text format, or OpenMetrics where the `Accept` header asks for it."""
    # A plain function runs in a thread: the registry may have to be read.
    text, content_type = state.metrics.exposition(request.headers.get("accept", ""))
    return Response(text, headers={"content-type": content_type})
