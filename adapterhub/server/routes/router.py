"""The router over HTTP: what it would choose and why, and its state."""

from __future__ import annotations

from fastapi import APIRouter

from adapterhub.server.adapters.explaining import explained, router_state
from adapterhub.server.protocol.registry import RouteExplanation, RouteRequest, RouterState
from adapterhub.server.state import State

router = APIRouter(prefix="/v1/adapterhub", tags=["router"])


@router.post("/route")
def explain_route(body: RouteRequest, state: State) -> RouteExplanation:
    """Tells which adapter `auto` would choose for a prompt, with what confidence, and why; answers nothing."""
    prompt = body.prompt if body.prompt is not None else body.messages or []
    return explained(state.hub, prompt, state.caller)


@router.get("/router")
def show_router(state: State) -> RouterState:
    """Shows the adapters that the router chooses from, and what to improve on their cards."""
    return router_state(state.hub)
