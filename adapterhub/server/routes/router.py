"""The router over HTTP: what it would choose and why, and its state."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from adapterhub.server.adapters.explaining import explained, router_state
from adapterhub.server.generating.model_names import route_filter_of
from adapterhub.server.protocol.body import JsonBody, describe_body
from adapterhub.server.protocol.registry import RouteExplanation, RouteRequest, RouterState
from adapterhub.server.state import State

router = APIRouter(prefix="/v1/adapterhub", tags=["router"])


@router.post("/route", openapi_extra=describe_body(RouteRequest))
def explain_route(
    body: Annotated[RouteRequest, Depends(JsonBody(RouteRequest))], state: State
) -> RouteExplanation:
    """Tells which adapter `auto` would choose for a prompt, with what confidence, and why; answers nothing."""
    prompt = body.prompt if body.prompt is not None else body.messages or []
    return explained(state.hub, prompt, state.caller, route_filter_of(state))


@router.get("/router")
def show_router(state: State) -> RouterState:
    """Shows the adapters that the router chooses from, and what to improve on their cards."""
    return router_state(state.hub)
